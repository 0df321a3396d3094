# syntax=docker/dockerfile:1
# The controller: REST API, queue, dashboard. There is no torch in it; it never loads a model.
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY syncbn ./syncbn
COPY worker ./worker
COPY service ./service
# The extras' packages by name, and the project without its dependencies: the one that it always has is torch.
RUN python -m venv /opt/syncbn \
    && python -c "import tomllib; extras = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; print(*extras['service'], *extras['postgres'], sep='\n')" > requirements.txt \
    && /opt/syncbn/bin/pip install --no-cache-dir -c constraints.txt setuptools -r requirements.txt \
    && /opt/syncbn/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11.13-slim-bookworm
# A volume that is mounted for the first time takes over whose its directory is.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/syncbn syncbn \
    && install -d -o syncbn -g syncbn /storage
COPY --from=build /opt/syncbn /opt/syncbn
ENV PATH=/opt/syncbn/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    SYNCBN_HOME=/var/lib/syncbn \
    SYNCBN_HOST=0.0.0.0 \
    SYNCBN_PORT=8470 \
    SYNCBN_LOG_FORMAT=json
USER 10001
EXPOSE 8470
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8470/healthz', timeout=2)"]
# A controller is a Ray driver: beside it runs a raylet without CPUs, which joins the cluster at SYNCBN_RAY_ADDRESS.
COPY --chmod=0755 deploy/containers/controller-entrypoint.sh /usr/local/bin/controller-entrypoint.sh
ENTRYPOINT ["controller-entrypoint.sh"]
