"""The commands about tokens, and `submit --code`, against the real application."""

import json
import os
import re

import pytest

from service.client import Client, Denied, PackError
from service.client.pack import pack
from tests.support.archives import GOOD, zipped
from tests.support.live_service import SPEC


@pytest.fixture
def package(tmp_path):
    """A directory of code, with what nobody means by it."""
    folder = tmp_path / "code"
    for name in (
        "mine/__init__.py",
        "mine/models.py",
        ".git/config",
        "mine/__pycache__/models.pyc",
        ".venv/bin/python",
        "node_modules/x.js",
        "a.pyc",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_token_is_shown_once_does_what_its_scopes_say_and_ends_when_revoked(run, service):
    """The life of a token for a colleague."""
    made = run("tokens", "create", "colleague", "--scope", "read", "--expires", "90d")
    token = made.stdout.strip()
    token_id = re.search(r"tok_\w{26}", made.stderr)[0]
    assert re.fullmatch(r"sbn_[\w-]{43}", token)

    listed = run("tokens", "ls")
    assert token not in listed.output
    assert "colleague" in listed.stdout
    [row] = [row for row in json.loads(run("tokens", "ls", "--json").stdout)["data"] if row["id"] == token_id]
    assert (row["scopes"], row["project"], row["revoked_at"]) == (["read"], "default", None)
    assert row["expires_at"] is not None

    assert run("ls", token=token).exit_code == 0
    refused = run("tokens", "ls", token=token)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "scope_missing" in re.sub(r"\s+", " ", refused.stderr)

    assert run("tokens", "revoke", token_id).exit_code == 0
    assert "unauthorized" in run("ls", token=token).stderr
    with Client(service.url, token) as client, pytest.raises(Denied):
        list(client.jobs())


def test_a_rotated_token_goes_on_and_the_old_one_ends(run):
    """At once, where asked so."""
    made = json.loads(run("tokens", "create", "ci", "--json").stdout)
    assert made["scopes"] == ["read", "submit"]
    renewed = json.loads(run("tokens", "rotate", made["id"], "--overlap", "0s", "--json").stdout)

    assert run("ls", token=renewed["token"]).exit_code == 0
    assert run("ls", token=made["token"]).exit_code == 2


@pytest.mark.parametrize(
    "args",
    [
        ("create", "x", "--expires", "soon"),
        ("create", "x", "--scope", "all"),
        ("create", "x", "--project", "Not A Project"),
        ("revoke", "tok_1"),
    ],
)
def test_what_cannot_be_is_a_usage_error(run, args):
    """With the value in the message."""
    result = run("tokens", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert args[-1] in re.sub(r"\s+", " ", result.stderr)


def test_submit_uploads_code_without_what_nobody_means_by_it(run, package, tmp_path):
    """No version control, no caches, no environment; the same directory is the same bundle."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SPEC))
    jobs = [json.loads(run("submit", spec, "--code", package, "--json").stdout) for _ in range(2)]

    assert jobs[0]["spec"]["code"] == jobs[1]["spec"]["code"]
    assert jobs[0]["spec"]["code"].startswith("code_")


def test_the_client_uploads_archives_as_they_are(service, tmp_path):
    """A .zip that somebody else made."""
    (tmp_path / "c.zip").write_bytes(zipped(GOOD))
    with Client(service.url, service.token) as client:
        assert client.upload_code(tmp_path / "c.zip")["num_files"] == len(GOOD)
        with pytest.raises(PackError, match=r"missing\.zip"):
            client.upload_code(tmp_path / "missing.zip")


def test_code_is_listed_and_deleted_once_no_job_names_it(run, service, tmp_path):
    """What a job names is refused with the number of jobs."""
    (tmp_path / "unused.zip").write_bytes(zipped({"unused.py": b"x = 1"}))
    (tmp_path / "used.zip").write_bytes(zipped({"used.py": b"x = 2"}))
    with Client(service.url, service.token) as client:
        unused, used = [client.upload_code(tmp_path / name)["id"] for name in ("unused.zip", "used.zip")]
        client.submit(SPEC | {"code": used})

    assert {unused, used} <= {row["id"] for row in json.loads(run("code", "ls", "--json").stdout)["data"]}
    assert run("code", "rm", unused).exit_code == 0
    refused = run("code", "rm", used)
    assert refused.exit_code != 0
    assert "named by 1 jobs" in refused.stderr
    assert unused not in run("code", "ls").stdout


def test_a_directory_is_packed_the_same_wherever_it_is(package, tmp_path):
    """Times and places leave no trace."""
    first = pack(package)
    moved = package.rename(tmp_path / "elsewhere")
    os.utime(moved / "mine/models.py", (1, 1))

    assert pack(moved) == first


@pytest.mark.parametrize("target", ["/etc/hostname", "mine", "nowhere"])
def test_a_link_is_not_followed_and_not_left_out_in_silence(package, target):
    """It could lead to a secret, and without it the code may not run."""
    (package / "link").symlink_to(target)

    with pytest.raises(PackError, match="link"):
        pack(package)


def test_an_empty_directory_is_refused(tmp_path):
    """Nothing to import."""
    with pytest.raises(PackError, match="no file"):
        pack(tmp_path)
