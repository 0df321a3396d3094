"""The command line against the real application: what it prints where, and the exit codes that scripts rely on."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.live_service import SPEC

COMMAND = [sys.executable, "-m", "service.cli.main"]


@pytest.fixture
def spec(tmp_path):
    """A job spec in a file."""
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(SPEC))
    return path


def _submitted(run, spec, *args):
    return json.loads(run("submit", spec, "--json", *args).stdout)["id"]


def _error(result, code):
    """Return what was said on stderr, having checked that nothing else was said."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return re.sub(r"\s+", " ", result.stderr)


def test_submit_and_follow_to_success(run, spec):
    """I submit and watch: states, steps, figures, and exit code 0."""
    result = run("submit", spec, "--follow")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("job_")
    for line in (
        "running: training on 1 workers",
        "step 3/3  loss 0.3333  accuracy 0.93  samples/s 100",
        "checkpoint at step 3, healthy",
        "succeeded",
    ):
        assert line in result.stdout


def test_submit_and_follow_as_json_is_one_document_a_line(run, spec):
    """The job first, then every event, the end last."""
    result = run("submit", spec, "--follow", "--json")
    job, *events = [json.loads(line) for line in result.stdout.splitlines()]
    assert job["id"].startswith("job_")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "end"


def test_a_failed_job_is_exit_code_1_with_its_reason(run, spec):
    """The job fails: so does the command, and it says why."""
    result = run("submit", spec, "--set", "name=fails", "--follow")
    assert result.exit_code == 1
    assert re.search(r"job_\w+ failed \(task_error\): .*the model raised ValueError: no", result.stderr)


def test_wait_takes_several_jobs_and_fails_with_one(run, spec):
    """Exit code 0 only if all succeeded."""
    good, bad = _submitted(run, spec), _submitted(run, spec, "--set", "name=fails")
    assert run("wait", good).exit_code == 0
    result = run("wait", good, bad, "--json")
    assert result.exit_code == 1
    assert [job["state"] for job in json.loads(result.stdout)["data"]] == ["succeeded", "failed"]


def test_pause_and_resume(run, spec):
    """A paused job gives its room back and waits; resumed it is queued again."""
    job = _submitted(run, spec, "--set", "name=forever")
    for command, states in (("pause", {"pausing", "paused"}), ("resume", {"queued", "starting", "running"})):
        assert run(command, job).exit_code == 0
        for _ in range(1000):
            state = json.loads(run("get", job, "--json").stdout)["state"]
            if state in states - {"pausing"}:
                break
        assert state in states - {"pausing"}
    assert run("cancel", job).exit_code == 0


def test_a_job_is_resized_by_its_id(run, spec):
    """The number is the job's from then on; what a spec may not say is refused."""
    job = _submitted(run, spec, "--set", "name=forever")
    resized = json.loads(run("resize", job, "3", "--json").stdout)
    assert resized["spec"]["resources"]["workers"] == 3
    assert run("resize", job, "0").exit_code == 2
    assert "cannot be split over 4000 workers" in _error(run("resize", job, "4000"), 2)
    assert run("cancel", job).exit_code == 0


def test_wait_has_a_timeout_and_cancel_ends_a_job(run, spec):
    """A job that goes on for ever: waiting ends, cancelling ends it, and cancelled is not success."""
    job = _submitted(run, spec, "--set", "name=forever")
    assert "expected it to end" in _error(run("wait", job, "--timeout", "0.1"), 1)
    assert run("cancel", job).exit_code == 0
    result = run("wait", job)
    assert result.exit_code == 1
    assert "cancelled" in result.stdout


@pytest.mark.parametrize(
    "args", [("ls",), ("get", "{job}"), ("metrics", "{job}"), ("checkpoints", "ls", "{job}"), ("checkpoints", "stats", "{job}")]
)
def test_everything_prints_for_people_and_as_json(run, spec, args):
    """--json is one JSON document on stdout and nothing else; without it there is something to read."""
    job = _submitted(run, spec)
    run("wait", job)
    args = [arg.format(job=job) for arg in args]
    for_people = run(*args)
    assert for_people.exit_code == 0, for_people.output
    assert for_people.stdout.strip()
    result = run(*args, "--json")
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def test_logs_show_no_control_characters_but_in_json(run, spec):
    """A log line cannot drive my terminal; --json has it unchanged, one document a line, also with -f."""
    job = _submitted(run, spec)
    run("wait", job)
    for flags in ((), ("-f",), ("--rank", "0")):
        assert "\x1b" not in run("logs", job, *flags).stdout
        assert r"\x1b[31mred" in run("logs", job, *flags).stdout
        (line,) = run("logs", job, *flags, "--json").stdout.removesuffix("\n").split("\n")
        assert json.loads(line)["message"].startswith("\x1b[31m")


def test_logs_are_searched(run, spec):
    """Only lines with a text, in capitals or not; a dot is a dot."""
    job = _submitted(run, spec)
    run("wait", job)
    for flags in ((), ("-f",)):
        assert "red" in run("logs", job, *flags, "--grep", "31mRED").stdout
        assert run("logs", job, *flags, "-g", "r.d").stdout == ""


def test_a_checkpoint_is_downloaded_with_its_digests(run, spec, tmp_path):
    """The default directory says which checkpoint it is; a second run verifies."""
    job = _submitted(run, spec)
    run("wait", job)
    for _ in range(2):
        result = run("checkpoints", "download", job, "best", "--json")
        found = json.loads(result.stdout)
        assert (found["directory"], found["step"]) == (f"{job}-step-00000003", 3)
        assert "verified" in result.stderr
    assert (tmp_path / found["directory"] / "manifest.json").exists()
    assert run("checkpoints", "download", job, "-o", "here").exit_code == 0
    assert (tmp_path / "here" / "model.safetensors").exists()


def test_checkpoints_are_compared_pinned_and_deleted(run, spec):
    """A word for each; what cannot be is said."""
    job, other = _submitted(run, spec), _submitted(run, spec)
    for one in (job, other):
        run("wait", one)
    against = ("--against", f"{other}/checkpoints/best")
    assert json.loads(run("checkpoints", "diff", job, *against, "--json").stdout)["against"] == {"job_id": other, "step": 3}
    assert "bn1" in run("checkpoints", "diff", job, "best", *against).stdout
    assert "best and latest are one checkpoint, that of step 3; name another" in run("checkpoints", "diff", job).stderr
    assert "checkpoint 3 is pinned" in run("checkpoints", "pin", job).output
    assert "pinned" in run("checkpoints", "ls", job).stdout
    assert "is pinned; expected one that is not" in run("checkpoints", "rm", job, "3").stderr
    assert "checkpoint 3 is not pinned" in run("checkpoints", "unpin", job).output
    assert "checkpoint 3 is deleted" in run("checkpoints", "rm", job, "3").output
    assert "no checkpoint yet" in run("checkpoints", "ls", job).output


def test_jobs_are_made_of_a_checkpoint(run, spec):
    """A fork, a re-estimation, an export; what is no format is said, with what is one."""
    job = _submitted(run, spec)
    run("wait", job)
    for command in (
        ("fork", job, "--step", "best", "--set", "optimizer.lr=1e-2"),
        ("checkpoints", "recalibrate", job, "best", "--num-samples", "64"),
        ("checkpoints", "export", job, "best", "--format", "plain", "--format", "onnx"),
    ):
        made = json.loads(run(*command, "--json").stdout)
        assert made["spec"]["initialize_from"] == f"{job}/checkpoints/3", command
    followed = run("fork", job, "--set", "name=again", "--follow")
    assert followed.exit_code == 0, followed.output
    assert "succeeded" in followed.stdout
    assert "--format onnx" in _error(run("checkpoints", "export", job), 2)
    assert run("checkpoints", "export", job, "--format", "tflite").stderr.count("formats.0 is") == 1
    assert "notes.txt is no image by its name" in run("checkpoints", "predict", job, "notes.txt").stderr


def test_the_beginning_of_an_id_is_enough_where_it_is_unique(run, spec):
    """I need not copy twenty-six characters; but one too few is no guess."""
    job = _submitted(run, spec)
    assert json.loads(run("get", job[:-1], "--json").stdout)["id"] == job
    assert json.loads(run("get", job.removeprefix("job_").lower(), "--json").stdout)["id"] == job
    assert "give more of it" in _error(run("get", "job_0"), 2)
    assert "no job's id is or begins with 'nonsense'" in _error(run("get", "nonsense"), 2)


def test_a_dry_run_prints_the_whole_spec(run, spec):
    """I see every default, and nothing was submitted."""
    before = run("ls", "--limit", "1000", "--json").stdout
    assert json.loads(run("submit", spec, "--dry-run").stdout)["optimizer"]["lr"] == 0.1
    assert run("ls", "--limit", "1000", "--json").stdout == before


def test_a_refused_spec_is_listed_problem_by_problem(run, spec):
    """Where, what was found, what was expected, what to do; exit code 2."""
    said = _error(run("submit", spec, "--set", "epoch=3", "--set", "batch_size=0"), 2)
    assert "epoch is 3: expected a known key; did you mean epochs?" in said
    assert "batch_size is 0: expected" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is neither YAML nor JSON: .* at line 1"),
        ("- a", "holds list; expected a mapping"),
        ("", "holds NoneType; expected a mapping"),
        ("a: 1\na: 2", "the key 'a' is given twice at line 2"),
        ("a: .nan", "holds a value that JSON has no word for"),
        ("a: !!binary aGk=", "holds a value that JSON has no word for"),
        ("a: &x [*x]", "holds a value that JSON has no word for"),
        ("a: !!python/object:os.system x", "is neither YAML nor JSON"),
        ("\tx: 1", "is neither YAML nor JSON"),
        ("? [a]: b", "is neither YAML nor JSON|holds a value"),
        ("[" * 5000, "is neither YAML nor JSON"),
    ],
)
def test_a_spec_that_is_none_is_explained(run, text, expected):
    """Bad input is named with its place, never a traceback."""
    assert re.search(expected, _error(run("submit", "-", stdin=text), 2))


def test_a_spec_comes_from_stdin_as_people_write_yaml(run):
    """1e-3 is a number, off is off, a date is text."""
    text = "name: 2026-11-20\nmodel: {name: resnet18}\ndata: {name: digits}\nrecalibrate: off\noptimizer: {name: sgd, lr: 1e-3}\n"
    resolved = json.loads(run("submit", "-", "--dry-run", stdin=text).stdout)
    assert (resolved["name"], resolved["optimizer"]["lr"], resolved["recalibrate"]) == ("2026-11-20", 0.001, "off")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("lr", "is not KEY.KEY=VALUE"),
        ("a..b=1", "is not KEY.KEY=VALUE"),
        ("name.x=1", "name is 'good'; expected a mapping"),
        ("a=[", "neither YAML"),
    ],
)
def test_a_bad_set_is_explained(run, spec, assignment, expected):
    """--set has a form, and it is shown."""
    assert expected in _error(run("submit", spec, "--set", assignment), 2)


def test_set_reaches_into_sections_that_are_not_there_yet(run, spec):
    """--set makes the sections it needs."""
    resolved = json.loads(run("submit", spec, "--set", "model.args.width=16", "--set", "schedule.warmup_epochs=1e-1", "--dry-run").stdout)
    assert (resolved["model"]["args"]["width"], resolved["schedule"]["warmup_epochs"]) == (16, 0.1)


def test_files_that_cannot_be_read_are_named(run, tmp_path):
    """A typing error in a path, a directory, a binary file."""
    assert "No such file" in _error(run("submit", "nowhere.yaml"), 2)
    assert "Is a directory" in _error(run("submit", "."), 2)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in _error(run("submit", "binary"), 2)


@pytest.mark.parametrize(
    "args", [("nonsense",), ("get",), ("ls", "--limit", "0"), ("metrics", "x", "--max-points", "1"), ("get", "x", "--nonsense")]
)
def test_wrong_usage_is_exit_code_2(run, args):
    """The usage is shown, on stderr."""
    _error(run(*args), 2)


def test_nobody_there_is_exit_code_3(run, tmp_path, monkeypatch):
    """I am told where nobody answers and how to start a controller."""
    assert "start one with `syncbn serve`" in _error(run("--url", "http://127.0.0.1:9", "ls"), 3)
    assert f"no controller runs on the home {tmp_path}" in _error(run("--home", tmp_path, "ls"), 3)
    monkeypatch.setenv("SYNCBN_URL", "nonsense")
    assert "expected http://HOST:PORT" in _error(run("ls"), 2)


def test_a_wrong_token_is_exit_code_2(run, service, monkeypatch):
    """The service answers, and says what is wrong with the token."""
    monkeypatch.setenv("SYNCBN_URL", service.url)
    monkeypatch.setenv("SYNCBN_TOKEN", "wrong")
    assert "not admitted" in _error(run("ls"), 2)


def test_ctrl_c_while_following_says_that_the_job_goes_on(service, spec):
    """I stop watching: exit code 130, and I know how to come back."""
    environment = {**os.environ, "SYNCBN_HOME": str(service.home)}
    process = subprocess.Popen(
        [*COMMAND, "submit", str(spec), "--set", "name=forever", "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    job = process.stdout.readline().split()[0]
    while "step 1/3" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{job} goes on without you; come back with `syncbn watch {job}`" in errors
    assert "Traceback" not in errors


def test_the_reader_of_the_output_may_go_away(service, spec):
    """`syncbn ls | head -0` is no traceback."""
    environment = {**os.environ, "SYNCBN_HOME": str(service.home)}
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} ls --json | true"], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stderr == ""


def test_version_and_help(run):
    """Both work without a service."""
    assert run("--version").stdout.startswith("syncbn ")
    assert "checkpoints" in run("--help").stdout
