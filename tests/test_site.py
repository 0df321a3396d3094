"""The documentation as a site: it builds without a warning, every link in it leads somewhere, and nothing is fetched from elsewhere."""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@dataclass
class Page(HTMLParser):
    """What a page has to be linked to, and what it links to and loads."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag, attrs):
        """Take down one element; HTMLParser calls this."""
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.assets += [given[name] for name in ("src", "href", "data") if name in given and tag not in {"a", "base"}]


def read(site: Path) -> dict[Path, Page]:
    """Return the pages of a site, but for that of a missing address: its links are absolute, because it may be shown anywhere."""
    pages = {path: Page() for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        page.feed(path.read_text())
    return pages


def broken_links(pages: dict[Path, Page]) -> list[str]:
    """Return links to a page or an anchor that is not there, and addresses elsewhere that are none."""
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                is_broken = parts.scheme not in {"http", "https"} or not re.fullmatch(r"[\w.-]+(:\d+)?", parts.netloc)
            else:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                target = target / "index.html" if target.is_dir() else target
                is_broken = not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].ids)
            found += [f"{path.name}: {link}"] * bool(is_broken)
    return found


def fetched(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Return what a browser would load from another host: by the pages, or by their style sheets."""
    sheets = [
        url for path in site.rglob("*.css") for url in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", path.read_text())
    ]
    return sheets + [asset for page in pages.values() for asset in page.assets if urlsplit(asset).netloc]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, as `make docs` builds it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return target


def test_every_link_leads_somewhere(site):
    """Whoever clicks arrives at the page, and at the place in it."""
    pages = read(site)

    assert len(pages) > 30
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert broken_links(pages) == []


def test_nothing_is_loaded_from_elsewhere(site):
    """It can be read without a network, and nobody else learns who reads it."""
    assert fetched(site, read(site)) == []


def test_every_page_is_in_the_menu_and_none_is_empty(site):
    """A page that nobody finds is as good as none."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w/-]+\.md", str(nav))

    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(listed)
    assert len(listed) == len(set(listed))
    for name in listed:
        article = (site / name).with_suffix(".html").read_text().partition("<article")[2].partition("</article>")[0]
        assert len(re.sub(r"<[^>]+>", "", article).split()) > 50, name


def test_references_are_made_of_the_code(site):
    """Routes, keys, and names that a program imports are there, with what their docstrings say."""
    expected = {
        "rest": ["POST /v1/jobs", "idempotency-key", "DELETE /v1/tokens/{token_id}", "CheckpointShape"],
        "job-spec": ["every_epochs", "lr_batch_size", "random_resized_crop"],
        "syncbn": ["convert_sync_batchnorm", "Collectives", "OutOfSyncError"],
        "client": ["idempotency_key", "IntegrityError"],
    }
    for name, words in expected.items():
        text = (site / "reference" / f"{name}.html").read_text()
        assert [word for word in words if word not in text] == [], name


def test_a_broken_link_and_a_foreign_script_are_found(tmp_path):
    """The tests above can fail."""
    (tmp_path / "a.html").write_text('<a href="b.html">1</a><a href="#no">2</a><a href="htp://x">3</a><a href="a.html#yes" id="yes">4</a>')
    (tmp_path / "c.html").write_text('<script src="https://cdn.example.org/x.js"></script>')
    (tmp_path / "c.css").write_text("@import url(//fonts.example.org/x.css)")
    pages = read(tmp_path)

    assert broken_links(pages) == ["a.html: b.html", "a.html: #no", "a.html: htp://x"]
    assert fetched(tmp_path, pages) == ["//fonts.example.org/x.css", "https://cdn.example.org/x.js"]
