"""The dashboard in a browser: logs and events, searched and followed."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from service.needle import folded
from tests.browser.filled import HOSTILE
from tests.service.store.ranks import said, talk
from worker.contract import EventType

pytestmark = pytest.mark.browser


def test_logs_are_searched_followed_and_read_back(look, filled):
    """The newest lines first; older ones on demand; a rank by itself; what comes while the line is broken arrives once."""
    view = look(f"#/jobs/{filled.job}/logs")
    lines = view.find("#log .line")
    expect(lines).to_have_count(500)
    view.button("Read 500 older lines").click()
    expect(lines).to_have_count(707)
    view.page.get_by_label("Search the log").fill("<SCRIPT>")
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text(HOSTILE)
    view.page.get_by_label("Search the log").fill("after an escape")
    expect(lines.locator(".text")).to_have_text("red after an escape")
    view.page.get_by_label("Search the log").fill("")
    view.page.get_by_role("combobox", name="Rank").select_option("1")
    expect(lines).to_have_count(5)
    filled.world.say(filled.job, 1, said(6, EventType.LOG, stream="stdout", level="info", message="live"))
    expect(lines).to_have_count(6)
    expect(view.find("#connection")).to_have_text("live")


@pytest.fixture
def talkative(filled):
    """A job with so long a log that the page reads only the end of it; one of its first lines is hostile."""
    job_id = filled.world.start(name="talkative")
    filled.world.say(job_id, 0, said(1, EventType.LOG, stream="stdout", level="info", message=f"first {HOSTILE}"))
    filled.world.call(talk, filled.world.store, job_id, 3000)
    return job_id


def test_a_whole_log_is_searched(look, filled, talkative):
    """What the page has not read the service looks through; what is found is marked as text; a line that comes meanwhile is found too."""
    view = look(f"#/jobs/{talkative}/logs")
    lines = view.find("#log .line")
    expect(lines).to_have_count(500)
    view.page.get_by_label("Search the log").fill("LINE 17 of")
    expect(lines).to_have_count(1)
    expect(lines.locator("mark")).to_have_text("line 17 of")
    expect(view.find("#log-said")).to_have_text("1 line found, 3,001 lines looked at")
    expect(view.button("Read 500 older lines")).to_be_hidden()
    filled.world.say(talkative, 0, said(9000, EventType.LOG, stream="stdout", level="info", message="line 17 of a new epoch"))
    expect(lines).to_have_count(2)
    view.picture("light-log-search")
    assert view.barriers() == []
    view.page.get_by_label("Search the log").fill("<SCRIPT>window.injected")
    expect(lines.locator("mark")).to_have_text("<script>window.injected")
    expect(lines).to_contain_text(HOSTILE)
    view.page.get_by_label("Search the log").fill("<img src=x onerror='window.injected = 2'>")
    expect(lines.locator("mark")).to_have_text("<img src=x onerror='window.injected = 2'>")
    assert view.page.evaluate("[window.injected, document.querySelectorAll('#log script, #log img').length]") == [None, 0]
    view.page.get_by_label("Search the log").fill("")
    expect(lines).to_have_count(501)
    expect(view.button("Read 500 older lines")).to_be_visible()
    assert view.complaints == []


def test_what_is_marked_is_what_the_service_finds(look):
    """Letters are folded by the page as by the service, each to one: what is found in a line lies at the same place in it."""
    letters = [chr(code) for code in (*range(0x590), *range(0x1E00, 0x2200))]
    fold = "(letters) => import('/dashboard/format.js').then(({ folded }) => letters.map(folded))"
    assert look().page.evaluate(fold, letters) == [folded(letter) for letter in letters]


def test_a_search_says_how_far_it_is_and_ends_with_its_words(look, talkative):
    """While it goes on; other words end it; where there is much it stops to be asked on, and where it breaks off it says so."""
    view = look(f"#/jobs/{talkative}/logs")
    expect(view.find("#log .line")).to_have_count(500)
    asked = []

    def slow(route):
        asked.append(parse_qs(urlsplit(route.request.url).query))
        if len(asked) == 1:
            route.fulfill(json={"data": [], "has_more": True, "next_cursor": "1234", "num_searched": 5000})

    view.page.route("**/logs?*contains=never*", slow)
    search, how_far = view.page.get_by_label("Search the log"), view.find("#log-said")
    search.fill("never")
    expect(how_far).to_have_text("searching: 0 lines found, 5,500 lines looked at …")
    with view.page.expect_event("requestfailed", lambda request: "contains=never" in request.url):
        search.fill("of many")
    assert [one.get("before") for one in asked] == [["2505"], ["1234"]]
    expect(how_far).to_have_text(re.compile("^1,500 lines found, 1,500 lines looked at; there may be more"))
    view.button("Search on").click()
    expect(how_far).to_have_text(re.compile("^2,500 lines found, 2,500 lines looked at; there may be more"))
    view.button("Search on").click()
    expect(how_far).to_have_text("3,000 lines found, 3,001 lines looked at")
    expect(view.button("Search on")).to_be_hidden()
    view.page.route("**/logs?*contains=lost*", lambda route: route.abort())
    search.fill("lost")
    expect(how_far).to_have_text("0 lines found, 500 lines looked at; the search broke off")


def test_a_rank_is_chosen_without_searching_anew(look, filled):
    """The words stay."""
    view = look(f"#/jobs/{filled.job}/logs")
    view.page.get_by_label("Search the log").fill("line 3")
    view.page.get_by_role("combobox", name="Rank").select_option("1")
    expect(view.find("#log .text")).to_have_text("hello of rank 1, line 3")
    expect(view.page.get_by_label("Search the log")).to_have_value("line 3")


def test_a_broken_stream_goes_on_where_it_was(look, filled):
    """The line breaks twice while a rank writes: every line arrives, each once."""
    view = look()
    asked = []

    def breaking(route):
        if "text/event-stream" not in route.request.headers.get("accept", "") or len(asked) == 2:
            return route.continue_()
        asked.append(route.request.headers.get("last-event-id"))
        filled.world.say(filled.other, 1, said(5 + len(asked), EventType.LOG, stream="stdout", level="info", message=f"break {len(asked)}"))
        return route.fulfill(headers={"content-type": "text/event-stream"}, body=": ping\n\n") if len(asked) == 1 else route.abort()

    view.page.route("**/logs?rank=1", breaking)
    view.go(f"#/jobs/{filled.other}/logs?rank=1")
    expect(view.find("#log .line").last).to_contain_text("break 2")
    expect(view.find("#log .line")).to_have_count(7)
    assert asked[0] == asked[1]
