"""The dashboard's files: served whole under a strict policy, self-contained, small, and unable to turn a job's words into markup."""

import re
from pathlib import Path

import httpx
import pytest

FOLDER = Path(__file__).parents[2] / "service" / "dashboard"
SCRIPTS = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in sorted(FOLDER.rglob("*.js"))}
MAX_LINES = 250
SINKS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "srcdoc", "javascript:")


def sinks(text: str) -> list[str]:
    """Return the ways in which a script turns text into markup or code."""
    return [sink for sink in SINKS if sink in text]


def missing_imports(folder: Path) -> list[str]:
    """Return modules that a script imports and that are not there."""
    imports = [(path, name) for path in folder.rglob("*.js") for name in re.findall(r'from "(\.[^"]+)"', path.read_text())]
    return [f"{path.name}: {name}" for path, name in imports if not (path.parent / name).exists()]


def test_the_page_and_everything_it_names_are_served_without_a_token(service):
    """I open the address: page, styles and every module come, each checked anew with a newer version of the service."""
    page = httpx.get(service.url)
    named = [*re.findall(r'(?:src|href)="(/[^"]+)"', page.text), *(f"/dashboard/{name}" for name in SCRIPTS)]
    answers = {path: httpx.get(service.url + path) for path in named}

    assert {path: answer.status_code for path, answer in answers.items() if answer.status_code != 200} == {}
    assert {answer.headers["cache-control"] for answer in (page, *answers.values())} == {"no-cache"}


@pytest.mark.parametrize("path", ["/", "/dashboard/main.js"])
def test_the_policy_lets_nothing_else_run(service, path):
    """No script, style, image or connection but the service's own, and no text that becomes script."""
    policy = httpx.get(service.url + path).headers["content-security-policy"]

    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy.split("; "))
    assert "require-trusted-types-for 'script'" in policy
    assert "http" not in policy


def test_plotly_is_the_installed_one(service):
    """Nothing is vendored and nothing comes from a CDN; a browser that has it is not sent it again."""
    address = f"{service.url}/dashboard/plotly.min.js"
    answer = httpx.get(address)

    assert b"plotly.js v" in answer.content[:200]
    assert httpx.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_the_reference_of_the_api_is_a_page_of_ours(service):
    """No script of a CDN behind /docs."""
    answer = httpx.get(f"{service.url}/docs")

    assert (answer.status_code, answer.headers["location"]) == (307, "/#/api")


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    """The policy has nothing to make an exception for."""
    page = (FOLDER / "index.html").read_text()
    for text in (page, *SCRIPTS.values(), *(path.read_text() for path in FOLDER.glob("*.css"))):
        assert re.findall(r"https?://[^\s\"']+", text) == []
    assert re.search(r"<script(?![^>]*src=)|<style|style=| on\w+=", page) is None


def test_no_text_becomes_markup():
    """What a job names or logs reaches the page as text only."""
    assert {name: sinks(text) for name, text in SCRIPTS.items() if sinks(text)} == {}


def test_a_way_to_make_markup_is_found():
    """The test above can fail."""
    assert sinks("node.innerHTML = name") == ["innerHTML"]


def test_every_module_is_small_and_says_what_it_is():
    """The rules of the Python files, in their spirit."""
    assert {name for name, text in SCRIPTS.items() if text.count("\n") > MAX_LINES or not text.startswith("// ")} == set()
    assert missing_imports(FOLDER) == []


def test_a_missing_import_is_found(tmp_path):
    """The test above can fail."""
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\n')

    assert missing_imports(tmp_path) == ["a.js: ./b.js"]
