"""Watching jobs: lines in a pipe, a board that moves on a terminal, and the exit code of the jobs."""

import io
import json
import os
import pty
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from service.cli.board import display, sparkline
from service.cli.following import View, show_event
from tests.support.live_service import SPEC

COMMAND = [sys.executable, "-m", "service.cli.main"]


@pytest.fixture
def spec(tmp_path):
    """A job spec in a file."""
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(SPEC))
    return path


def _submitted(run, spec, name):
    return json.loads(run("submit", spec, "--json", "--set", f"name={name}").stdout)["id"]


def test_several_jobs_are_watched_at_once(run, spec):
    """Every line says whose it is; one that fails makes the exit code 1, and says why."""
    good, bad = _submitted(run, spec, "good"), _submitted(run, spec, "fails")
    result = run("watch", good, bad)
    assert result.exit_code == 1
    assert f"good {good[-4:]}: step 3/3  loss 0.3333  accuracy 0.93" in result.stdout
    assert f"fails {bad[-4:]}: step 1/3" in result.stdout
    assert f"{bad} failed (task_error)" in result.stderr
    assert run("watch", good, good).exit_code == 0


def test_watching_as_json_is_one_document_a_line(run, spec):
    """Of several jobs each line names its job."""
    ids = {_submitted(run, spec, "good"), _submitted(run, spec, "other")}
    lines = [json.loads(line) for line in run("watch", *ids, "--json").stdout.splitlines()]
    assert {line["job"] for line in lines if line["type"] == "end"} == ids


def test_an_unknown_job_cannot_be_watched(run):
    """A typing error ends at once."""
    assert run("watch", "job_" + "0" * 26).exit_code == 2


def _on_a_terminal(command, **environment):
    """Run a command on a terminal of its own; return its exit code and everything that it wrote there."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, **environment})
    os.close(terminal)
    bound = threading.Timer(60, process.kill)
    bound.start()
    output = b""
    try:
        while piece := os.read(controller, 65536):
            output += piece
    except OSError:  # what a terminal without a writer says
        pass
    os.close(controller)
    bound.cancel()
    return process.wait(60), output.decode()


@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_on_a_terminal_there_is_a_board(service, spec, colour):
    """A bar, the course of the loss, the accuracy and what happened; without colours where I do not want them."""
    command = [*COMMAND, "submit", str(spec), "--watch"]
    environment = {"SYNCBN_HOME": str(service.home), "TERM": "xterm-256color", "COLUMNS": "120", **colour}
    environment |= {"SYNCBN_URL": "", "SYNCBN_TOKEN": ""}
    code, shown = _on_a_terminal(command, **environment)
    assert code == 0, shown
    for text in ("━", "3/3", "█▃▁", "loss 0.3333", "accuracy 0.93", "checkpoint at step 3, healthy", "succeeded"):
        assert text in shown
    assert ("\x1b[32m" in shown) == (not colour)


def test_a_terminal_that_cannot_move_gets_lines():
    """TERM=dumb: no cursor is moved."""
    out = Console(file=io.StringIO(), force_terminal=True, color_system=None, _environ={"TERM": "dumb"}, width=100)
    view = View("job_1", "a")
    with display(out, [view]) as show:
        values = {"train/loss": 2.0}
        show_event({"type": "metrics", "data": {"step": 1, "total_steps": 1, "epoch": 0.5, "values": values}}, view, show)
    assert out.file.getvalue() == "step 1/1  loss 2\n"


def test_the_course_of_many_values_fits():
    """However long the training, the line is as wide as asked; what is no number leaves no hole."""
    assert len(sparkline([float(step) for step in range(10_000)], 30)) == 30
    assert sparkline([1.0, float("nan"), 2.0], 9) == "▁█"
    assert sparkline([], 9) == ""
    assert sparkline([5.0, 5.0], 9) == "▁▁"


def test_a_long_watch_keeps_its_memory():
    """The losses of a long training do not all stay; those that do are evenly spread over it."""
    view = View("job_1")
    for step in range(50_000):
        view.absorb({"type": "metrics", "data": {"step": step, "total_steps": None, "values": {"train/loss": float(step)}}})
    assert len(view.losses) <= 4096
    assert view.losses == [float(step) for step in range(0, 50_000, view.stride)]
