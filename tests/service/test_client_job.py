"""A job in a notebook: it shows itself, gives its metrics and plots them."""

import json
import sys

import pytest

from service.client import Client, Job, MissingExtra, PlotError
from service.client.figures import figure
from tests.support.live_service import SPEC


@pytest.fixture(scope="module")
def client(service):
    """A client as one has it on the controller's machine."""
    with Client(home=service.home) as client:
        yield client


@pytest.fixture(scope="module")
def job(client):
    """A job that has succeeded, as `wait` returns it."""
    return client.wait(client.submit(SPEC)["id"], timeout_s=20, interval_s=0.05)


def test_a_job_is_still_the_plain_answer(client, job):
    """What a script did with the decoded JSON, it does with a job."""
    assert isinstance(job, Job)
    assert json.loads(json.dumps(job)) == client.job(job.id)
    assert job["progress"]["step"] == 3


def test_metrics_of_a_job_by_name(job):
    """Steps and values, of the metrics I ask for or of all."""
    assert job.metrics("val/accuracy") == {"val/accuracy": [[1, 0.91], [2, 0.92], [3, 0.93]]}
    assert set(job.metrics()) == {"train/loss", "val/accuracy", "throughput/samples_per_s"}


def test_a_plot_shows_what_was_asked_for(job):
    """One line a metric, its points those of the job; metrics of one kind share a panel."""
    made = job.plot("train/loss", "val/accuracy")
    assert [(line.name, list(line.x)) for line in made.data] == [("train/loss", [1, 2, 3]), ("val/accuracy", [1, 2, 3])]
    shared = figure({"train/loss": [[1, 2.0]], "val/loss": [[1, 3.0]]}, title="t")
    assert {line.yaxis for line in shared.data} == {"y"}
    assert len(job.plot().data) == 3


def test_a_metric_that_is_not_there_is_named(job):
    """A typing error is no empty plot."""
    with pytest.raises(PlotError, match=r"good has no points of train/lost yet; see job.metrics\(\)"):
        job.plot("train/lost")


def test_without_plotly_the_extra_is_named(job, monkeypatch):
    """I am told what to install."""
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(MissingExtra, match=r"pip install 'syncbn\[notebook\]'"):
        job.plot("train/loss")


def test_a_notebook_shows_state_progress_and_figures(job):
    """The last value of a cell is a table, and a name in it is text, whatever it holds."""
    shown = job._repr_html_()
    assert all(text in shown for text in (job.id, "succeeded", "step 3 of 3", "0.93"))
    assert "<script>" not in Job({**job, "name": "<script>alert(1)</script>"}, None)._repr_html_()
    assert "not started" in Job({"id": "job_1", "state": "queued", "progress": {"step": 0, "total_steps": None}}, None)._repr_html_()
