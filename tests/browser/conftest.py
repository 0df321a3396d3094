"""A real Chromium over a real service. Where no Chromium is installed, the tests skip and say so."""

import shutil
from pathlib import Path

import pytest

from tests.browser.filled import Filled
from tests.browser.view import View
from tests.service.api.served import served

PICTURES = Path(__file__).parents[2] / "artifacts" / "dashboard"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


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


@pytest.fixture(scope="module")
def contexts(chromium):
    """The browser's contexts by their options: pages of one share what the browser keeps, such as megabytes of Plotly."""
    opened = {}

    def context_of(options):
        key = repr(sorted(options.items()))
        if key not in opened:
            opened[key] = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options)
        return opened[key]

    yield context_of
    for context in opened.values():
        context.close()


@pytest.fixture
def look(contexts, filled):
    """Opens a page as somebody with a token; `without` are routes that the service shall not have, the rest is for the browser."""
    views = []

    def opened(address: str = "#/jobs", *, url: str = filled.url, token: str | None = filled.token, without=(), **options) -> View:
        view = View(contexts(options), url, PICTURES)
        views.append(view)
        _pretend(view.page, without)
        view.page.goto(f"{url}/#token={token}" if token else url)
        if token:
            view.go(address)
        return view

    yield opened
    for view in views:
        view.page.close()


def _pretend(page, without) -> None:
    """Have the service describe itself without some routes."""

    def describe(route):
        document = route.fetch().json()
        document["paths"] = {path: operations for path, operations in document["paths"].items() if path not in without}
        route.fulfill(json=document)

    if without:
        page.route("**/openapi.json", describe)
