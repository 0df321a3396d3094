"""Which pages the site has beside those in this folder, and where their links lead: a hook of MkDocs.

Owns: documents of the repository that lie elsewhere, the list of decisions, and the references, which are made of the code they describe.
In the repository all links lead to files; here those to pages are bent to where the pages are, and those to other files become their names.
"""

import posixpath
import re
from pathlib import Path
from typing import Final

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parent.parent
ELSEWHERE: Final = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "deploy/README.md": "deploy.md",
}
"""By place in the repository, the page. What lies in docs/ is where it is."""
_ORIGIN: Final = {page: place for place, page in ELSEWHERE.items()}
_LINK: Final = re.compile(r"\[([^\]\n]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of the folder."""
    made = {page: (ROOT / place).read_text() for place, page in ELSEWHERE.items()}
    made["decisions/index.md"] = _decisions()
    made["reference/job-spec.md"] = reference.of_spec()
    made["reference/rest.md"] = reference.of_routes()
    made["reference/syncbn.md"] = reference.of_package("syncbn")
    made["reference/client.md"] = reference.of_package("service.client")
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs calls by name
    """Bend the links between documents to where their pages are."""
    name = page.file.src_uri
    origin = _ORIGIN.get(name, f"docs/{name}")

    def bend(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if (ROOT / place).is_dir():
            place += "/index.md"
        if place in ELSEWHERE or place.startswith("docs/"):
            led = ELSEWHERE.get(place, place.removeprefix("docs/"))
            return f"[{text}]({posixpath.relpath(led, posixpath.dirname(name) or '.')}{anchor})"
        return text if (ROOT / place).exists() else link[0]

    return _LINK.sub(bend, markdown)


def _decisions() -> str:
    paths = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    rows = [f"- [{path.read_text().splitlines()[0].removeprefix('# ')}]({path.name})" for path in paths]
    return "\n".join(["# Decisions", "", "Why it is as it is. Pages are superseded, never edited.", "", *rows]) + "\n"
