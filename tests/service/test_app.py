"""Tests of service/app.py: the wiring, and what the controller's process must never load."""

import asyncio
import subprocess
import sys

import pytest

from service.app import create_app
from service.settings import Settings
from tests.service.api.world import running
from tests.service.store.ranks import SPEC

BAN = (
    "import sys; loaded = {name.partition('.')[0] for name in sys.modules} & {'torch', 'syncbn', 'safetensors'}; assert not loaded, loaded"
)
LIFE = """
import asyncio, tempfile, pathlib, httpx
from service.app import create_app
from service.settings import Settings

async def main():
    app = create_app(Settings(home=pathlib.Path(tempfile.mkdtemp())))
    async with app.router.lifespan_context(app):
        headers = {"Authorization": f"Bearer {app.state.first_token}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", headers=headers) as client:
            assert (await client.get("/v1/norms")).status_code == 200
            assert (await client.get("/openapi.json")).status_code == 200

asyncio.run(main())
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_living_controller_has_not_loaded_torch():
    """Started, asked, stopped: no torch, no library, no tensors."""
    outcome = _run(LIFE + BAN)

    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("module", ["torch", "safetensors", "syncbn"])
def test_the_test_above_can_fail(module):
    """A module that is loaded is found."""
    outcome = _run(f"import sys, types; sys.modules[{module!r}] = types.ModuleType({module!r})\n" + BAN)

    assert outcome.returncode != 0
    assert module in outcome.stderr


class FakeController:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    async def start(self, store):
        """Note it."""
        self.told.append(("start", await store.jobs.in_states([])))

    async def stop(self):
        """Note it."""
        self.told.append("stop")

    async def view(self):
        """Return one node."""
        return {"is_connected": True, "nodes": [{"name": "n"}]}


def test_the_controller_is_started_and_stopped_with_the_application(tmp_path):
    """On the same loop, with an open store; its view is what the API shows."""
    controller = FakeController()
    app = create_app(Settings(home=tmp_path), controller)

    async def life():
        async with app.router.lifespan_context(app):
            assert controller.told == [("start", [])]
            assert app.state.context.controller is controller

    asyncio.run(life())
    assert controller.told == [("start", []), "stop"]


def test_a_controller_that_cannot_start_lets_go_of_the_database(tmp_path):
    """The next attempt is not told that another process has it."""

    class Failing(FakeController):
        async def start(self, store):
            raise RuntimeError("no")

    async def life(controller):
        app = create_app(Settings(home=tmp_path), controller)
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(life(Failing()))
    asyncio.run(life(FakeController()))


def test_jobs_are_there_after_a_restart(tmp_path):
    """The same home, the same token, the same jobs."""
    with running(tmp_path) as world:
        job = world.submit()
        token = world.client.headers["Authorization"]
    with running(tmp_path) as world:
        assert world.client.headers["Authorization"] == token
        assert world.client.app.state.first_token is None
        assert world.client.get(f"/v1/jobs/{job['id']}").json() == job
        assert world.client.post("/v1/jobs", json=SPEC).status_code == 201


def test_the_cluster_is_what_the_controller_sees(tmp_path):
    """Without one, the service says that it runs nothing."""
    with running(tmp_path) as world:
        assert world.client.get("/v1/cluster").json()["is_connected"] is False
