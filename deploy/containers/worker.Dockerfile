# syntax=docker/dockerfile:1
# A node of the Ray cluster, head or worker: torch, Ray and the training code. Give it a CUDA build of torch with
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.11.13-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The compiler is Inductor's, for `compile: norm` and `compile: model`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++=4:12.2.0-3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /var/lib/syncbn syncbn
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY syncbn ./syncbn
COPY worker ./worker
COPY service ./service
RUN python -m venv /opt/syncbn \
    && /opt/syncbn/bin/pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch \
    && /opt/syncbn/bin/pip install --no-cache-dir -c constraints.txt setuptools \
    && /opt/syncbn/bin/pip install --no-cache-dir -c constraints.txt --no-build-isolation '.[worker,export]'
ENV PATH=/opt/syncbn/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001
WORKDIR /var/lib/syncbn
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["ray", "health-check", "--address", "127.0.0.1:6379", "--skip-version-check"]
ENTRYPOINT ["ray", "start", "--block", "--disable-usage-stats"]
CMD ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
