"""A real Chromium over a real service. Where no Chromium is installed, the tests skip and say so."""

import shutil
from pathlib import Path

import pytest

from tests.browser.filled import Filled, telemetry
from tests.browser.view import View
from tests.service.api.served import served

PICTURES = Path(__file__).parents[2] / "artifacts" / "dashboard"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
LIVE_ROUTE = "/v1/jobs/{job_id}/statistics"


@pytest.fixture(scope="module")
def chromium():
    """One browser for a file of tests: playwright's loop must not outlive it, other tests have loops of their own."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def filled(chromium, tmp_path_factory):
    """A service with something of everything; the browser first, so that nothing is filled where it is missing."""
    with served(tmp_path_factory.mktemp("home"), heartbeat_s=1) as world:
        yield Filled(world)


@pytest.fixture
def look(chromium, filled):
    """Opens a page as somebody with a token; `without` are routes that the service shall not have, the rest is for the browser."""
    contexts = []

    def opened(address: str = "#/jobs", *, url: str = filled.url, token: str | None = filled.token, without=(), **options) -> View:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options)
        contexts.append(context)
        view = View(context, url, PICTURES)
        _pretend(view.page, without)
        view.page.goto(f"{url}/#token={token}" if token else url)
        if token:
            view.go(address)
        return view

    yield opened
    for context in contexts:
        context.close()


def _pretend(page, without) -> None:
    """Have the service describe itself without some routes, and answer of a job's layers what a trained one would."""

    def describe(route):
        document = route.fetch().json()
        document["paths"].setdefault(LIVE_ROUTE, {"get": {"responses": {}}})
        document["paths"] = {path: operations for path, operations in document["paths"].items() if path not in without}
        route.fulfill(json=document)

    page.route("**/openapi.json", describe)
    page.route("**/v1/jobs/*/statistics?*", lambda route: route.fulfill(json=telemetry()))
