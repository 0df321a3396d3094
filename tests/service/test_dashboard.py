"""The dashboard's files: served whole under a strict policy, self-contained, and unable to turn a job's words into markup."""

import re
from pathlib import Path

import pytest

from service.client import Client
from tests.support.live_service import SPEC, live_service

FOLDER = Path(__file__).parents[2] / "service" / "dashboard"
SCRIPT = (FOLDER / "app.js").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """One service for the module."""
    with live_service(tmp_path_factory.mktemp("home")) as service:
        yield service


def test_the_page_and_everything_it_names_are_served_without_a_token(service):
    """I open the address: page, style and script come, under a policy that lets nothing else run."""
    import httpx

    page = httpx.get(service.url)
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert httpx.get(service.url + path).status_code == 200, path


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    """No CDN, no inline script or style: the policy has nothing to make an exception for."""
    page = (FOLDER / "index.html").read_text()
    for text in (page, SCRIPT, (FOLDER / "style.css").read_text()):
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert re.search(r"<script(?![^>]*src=)|<style|style=| on\w+=", page) is None


@pytest.mark.parametrize(
    "sink", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "srcdoc"]
)
def test_no_text_becomes_markup(sink):
    """What a job names or logs reaches the page as text only."""
    assert sink not in SCRIPT


def test_the_token_is_taken_out_of_the_address():
    """The link with the token does not stay in the history, and the token does not outlive the tab."""
    assert "history.replaceState" in SCRIPT
    assert "localStorage" not in SCRIPT


def test_every_route_that_the_page_asks_exists(service):
    """The page uses the public API as it is."""
    with Client(service.url, service.token) as client:
        job = client.wait(client.submit(SPEC)["id"], timeout_s=20, interval_s=0.05)["id"]
        paths = {path.replace("${id}", job) for path in re.findall(r"get\([`\"](/v1/[^`\"$]*(?:\$\{id\}[^`\"$]*)?)[`\"]", SCRIPT)}
        assert len(paths) >= 4
        for path in paths:
            assert client._json("GET", path)
