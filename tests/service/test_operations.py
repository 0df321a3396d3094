"""docs/operations.md: backing up, restoring and upgrading, by the commands on the page."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from service.client import Client
from service.store import migration
from tests.support.live_service import SPEC, live_service
from tests.support.serving import until

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def _commands(heading: str) -> str:
    """Return the first block of commands below a heading of the page."""
    return re.search(rf"^## {heading}\n.*?```bash\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]


def _do(heading: str, home: Path, backup: Path) -> None:
    environment = {**os.environ, "SYNCBN_HOME": str(home), "BACKUP": str(backup)}
    subprocess.run(["bash", "-euc", _commands(heading)], env=environment, check=True, timeout=60)


def _files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_what_was_backed_up_while_it_ran_is_there_in_a_new_home(tmp_path):
    """Jobs, events, metrics, tokens and checkpoints; of a checkpoint that the old database does not know, too. What came later is not."""
    home, backup, restored = tmp_path / "home", tmp_path / "backup", tmp_path / "restored"
    home.mkdir()
    with live_service(home), Client(home=home) as client:
        kept = client.submit(SPEC)["id"]
        client.wait(kept, timeout_s=60)
        before = [client.job(kept), list(client.events(kept)), client.metrics(kept), list(client.checkpoints(kept))]
        _do("Back up", home, backup)
        later = client.submit(SPEC)["id"]
        client.wait(later, timeout_s=60)
        _do("Back up", home, tmp_path / "again")
        client.download(kept, "latest", tmp_path / "before")

    _do("Restore", restored, backup)
    with sqlite3.connect(restored / "syncbn.db") as database:
        database.execute("DELETE FROM checkpoints")
    database.close()
    with live_service(restored), Client(home=restored) as client:
        until(lambda: list(client.checkpoints(kept)), 30, "the catalogue, which is made anew from the storage beside everything else")
        after = [client.job(kept), list(client.events(kept)), client.metrics(kept), list(client.checkpoints(kept))]
        client.download(kept, "latest", tmp_path / "after")
        jobs = [job["id"] for job in client.jobs()]

    assert before[3]
    assert after == before
    assert jobs == [kept]
    assert _files(tmp_path / "after") == _files(tmp_path / "before")
    assert (restored / "token").stat().st_mode & 0o777 == 0o600
    assert backup.stat().st_mode & 0o777 == restored.stat().st_mode & 0o777 == 0o700


def _revision(path: Path) -> str:
    with sqlite3.connect(path) as database:
        [(revision,)] = database.execute("SELECT version_num FROM alembic_version")
    database.close()
    return revision


_OPEN = """
import asyncio, sys
from service.store.store import Store
async def opened():
    async with await Store.open("sqlite:///" + sys.argv[1]):
        pass
asyncio.run(opened())
"""
_KILLED = """
import os, signal
from service.store import migration
upgrade = migration.command.upgrade
def killed(*arguments):
    upgrade(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
migration.command.upgrade = killed
"""


def _open(path: Path, prelude: str = "") -> int:
    return subprocess.run([sys.executable, "-c", prelude + _OPEN, str(path)], check=False, timeout=60).returncode


def test_an_upgrade_that_is_killed_leaves_the_old_schema(tmp_path):
    """SIGKILL when the last step is done and nothing is committed: the old version could go on, the next start brings the new schema."""
    path = tmp_path / "syncbn.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(migration._SCRIPTS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()

    assert _open(path, _KILLED) == -signal.SIGKILL
    assert _revision(path) == "0001"
    assert _open(path) == 0
    assert _revision(path) > "0001"
