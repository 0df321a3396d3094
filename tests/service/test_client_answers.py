"""What type checkers know of the client's answers: what the service describes, and nothing else."""

import subprocess
import sys

import pytest

from tests.support.answers import CLIENT, described, generated

ROOT = CLIENT.parent.parent
PROGRAM = """
from service.client import AsyncClient, Client
from service.client.answers import Event
from service.client.checkpoint_answers import LayerStatistics

def names(client: Client, job_id: str) -> list[str]:
    layers: list[LayerStatistics] = client.statistics(job_id, "best")["layers"]
    return [layer["name"] for layer in layers]

def newest(client: Client, job_id: str) -> Event:
    return list(client.events(job_id, limit=1))[0]

async def step(client: AsyncClient, job_id: str) -> int:
    job = await client.job(job_id)
    return job["progress"]["step"]

def free(client: Client) -> int:
    room = client.cluster()["room"]
    return room["free_gpus"] if room else 0

def probable(client: Client, job_id: str) -> str | None:
    with client:
        return client.manifest(job_id)["created_at"] if client.job(job_id)["state"] == "succeeded" else None
"""
WRONG = {
    'layer["name"]': ('layer["nome"]', "nome"),
    '["progress"]["step"]': ('["progress"]["steps"]', "steps"),
    '== "succeeded"': ('== "successful"', "successful"),
    'room["free_gpus"]': ('room["free_tpus"]', "free_tpus"),
    "job_id: str) -> int": ("job_id: str) -> str", "Incompatible return value"),
}


@pytest.fixture(scope="module")
def files():
    """What the files are to be, by their names."""
    return generated(described())


def test_the_types_are_those_of_the_openapi_document(files):
    """If this fails: change the shapes in service/api, then `make format`."""
    assert {name: (CLIENT / name).read_text() for name in files} == files


def test_a_type_checker_knows_the_fields_and_finds_what_is_none(tmp_path):
    """Of both clients: the program passes as it is, and each of its mistakes is named."""
    programs = [PROGRAM] + [PROGRAM.replace(right, wrong) for right, (wrong, _) in WRONG.items()]
    paths = [tmp_path / f"program_{number}.py" for number, _ in enumerate(programs)]
    for path, program in zip(paths, programs, strict=True):
        path.write_text(program)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
        *map(str, paths),
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)

    said = {path.name: [line for line in found.stdout.splitlines() if line.startswith(str(path))] for path in paths}
    assert said[paths[0].name] == [], found.stdout + found.stderr
    for path, (_, word) in zip(paths[1:], WRONG.values(), strict=True):
        assert any(word in line for line in said[path.name]), found.stdout + found.stderr
