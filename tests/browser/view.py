"""One page in the browser, and what went wrong on it."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Locator, Route, expect

# Plotly brings a style sheet of a map library along, which the policy turns away, once; no map is drawn here.
TURNED_AWAY = re.compile(r"Applying inline style violates .*style-src 'self'")


class View:
    """A page that remembers every complaint of the browser and every request."""

    def __init__(self, context: BrowserContext, url: str, pictures: Path) -> None:
        self.page, self.url, self.pictures = context.new_page(), url, pictures
        self.page.set_default_timeout(15_000)
        expect.set_options(timeout=15_000)
        self.complaints: list[str] = []
        self.num_turned_away = 0
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _heard(self, message: Any) -> None:
        self.num_turned_away += bool(TURNED_AWAY.search(message.text))
        is_known = self.num_turned_away == 1 and TURNED_AWAY.search(message.text)
        if message.type in {"error", "warning"} and not is_known and "status of 4" not in message.text:
            self.complaints.append(message.text)

    def go(self, address: str) -> "View":
        """Open an address of the dashboard and wait until it is drawn."""
        self.page.goto(f"{self.url}/{address}")
        self.wait_until_drawn()
        return self

    def wait_until_drawn(self) -> None:
        """Wait for the page's content and for every chart that has something to show."""
        expect(self.page.locator("main h1, main section").first).to_be_visible()
        for plot in self.page.locator(".plot").all():
            expect(plot.or_(self.page.locator("#none")).first).to_have_class(re.compile("js-plotly-plot|empty"))

    def find(self, selector: str) -> Locator:
        """Return what a selector finds."""
        return self.page.locator(selector)

    def button(self, name: str) -> Locator:
        """Return the button of a name."""
        return self.page.get_by_role("button", name=name, exact=True)

    def row(self, words: str) -> Locator:
        """Return the table row that has these words."""
        return self.page.locator("tbody tr", has_text=words)

    def sees(self, words: str) -> None:
        """Wait until the words are there."""
        expect(self.page.locator("main")).to_contain_text(words)

    def refuses(self, method: str, address: str, problem: dict[str, Any]) -> None:
        """Have requests answered with a problem."""

        def answer(route: Route) -> None:
            if route.request.method == method:
                route.fulfill(status=409, json=problem)
            else:
                route.continue_()

        self.page.route(address, answer)

    def picture(self, name: str, *, is_whole: bool = False) -> None:
        """Keep how the page looks in the window, or whole."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self.pictures / f"{name}.png", full_page=is_whole)

    def barriers(self, rules: list[str] | None = None) -> list[str]:
        """Return what axe finds: for whom the page cannot be used, and where."""
        options = {"runOnly": rules or ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"]}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html'][:150]} {one['nodes'][0]['failureSummary'][:200]}" for one in found]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
