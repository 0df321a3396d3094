"""deploy/ tried: controller, Ray's head, two workers and PostgreSQL, each on a host of its own, by the files' own commands."""

import re

import pytest

from tests.support.deployment import NODE_STARTED, ONE_CPU, Deployment
from tests.support.hosts import ROOT, switched_hosts, why_not
from tests.support.postgres import binaries

pytestmark = pytest.mark.ray
NAMES = ("postgres", "head", "worker1", "worker2", "controller")
SETTINGS_OF_A_CONTROLLER = """
SYNCBN_DATABASE_URL=postgresql://syncbn@postgres:5432/syncbn
SYNCBN_STORAGE=file:///storage
SYNCBN_RAY_ADDRESS=head:6379
PGPASSFILE=/etc/syncbn/pgpass
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH=/etc/syncbn/ray-token
""".strip()


@pytest.fixture
def hosts():
    """Five hosts that know each other by name."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    if binaries() is None:
        pytest.skip("no PostgreSQL here: install it")
    with switched_hosts(*NAMES, are_known=True) as made:
        yield dict(zip(NAMES, made, strict=True))


def _settings_of_a_worker() -> str:
    """Return the environment file of a worker, as the unit's comment says it; with room for one rank."""
    unit = (ROOT / "deploy" / "systemd" / "syncbn-ray.service").read_text()
    words = re.search(r"# (RAY_START=.*?)\nEnvironmentFile", unit, re.DOTALL)[1].replace("\n# ", " ")
    start = re.search(r'"(--address=[^"]*)" on a worker', words)[1].replace("HEAD", "head")
    return "\n".join([f'RAY_START="{start} {ONE_CPU}"', *re.findall(r"RAY_AUTH_\w+=[\w/-]+", words)])


def test_a_deployment_on_five_machines_passes_its_own_smoke_test(hosts, tmp_path):
    """I follow the files, run smoke.sh from another machine with a token, and a job trains on both workers; another controller knows it."""
    with Deployment(tmp_path, list(hosts.values())) as deployment:
        deployment.start_postgres(hosts["postgres"])
        deployment.start("head", hosts["head"])
        deployment.start("worker", hosts["worker1"], ONE_CPU)
        deployment.start_unit("syncbn-ray", hosts["worker2"], _settings_of_a_worker(), NODE_STARTED)
        controller = deployment.start("controller", hosts["controller"])
        before = [hosts[name].received_bytes() for name in ("worker1", "worker2")]
        token = (deployment.home(hosts["controller"]) / "token").read_text().strip()
        said = deployment.smoke(hosts["head"], "http://controller:8470", token, 300)
        after = [hosts[name].received_bytes() for name in ("worker1", "worker2")]

        assert "trains, and its checkpoint is whole" in said
        assert all(then - now > 1_000_000 for now, then in zip(before, after, strict=True)), "gradients went over both cables"
        assert not list(deployment.home(hosts["controller"]).glob("*.db")), "jobs are in PostgreSQL"
        controller.terminate()
        assert controller.wait(30) == 0
        deployment.start_unit("syncbn-controller", hosts["head"], SETTINGS_OF_A_CONTROLLER, '"event": "listening"')
        assert "succeeded" in deployment.ask_the_unit(hosts["head"], "ls"), "another controller, by its unit, knows the job"
