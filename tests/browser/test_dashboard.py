"""What people do with the dashboard, in a real Chromium. Pictures of every page are kept in artifacts/dashboard."""

import re

import pytest
import yaml
from playwright.sync_api import expect

from service.states import State
from tests.browser.filled import NUM_JOBS, PEAK
from tests.service.api.served import served
from tests.service.store.ranks import metrics
from tests.support.predictions import digit, published, small_model
from worker.contract import parse_spec

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844}


def _pages(filled) -> dict[str, str]:
    job = f"#/jobs/{filled.job}"
    tabs = {tab: f"{job}/{tab}" for tab in ("checkpoints", "logs", "events", "spec")}
    tabs |= {"job": job, "statistics": f"{job}/statistics?layer=layer1.1.bn2&against=100"}
    tabs["comparison"] = f"#/compare?comparison={filled.comparison}"
    tabs["comparing"] = f"#/compare/new?from={filled.job}"
    jobs = {"failed": f"#/jobs/{filled.by_state[State.FAILED]}", "compare": f"#/compare?jobs={filled.job},{filled.other}"}
    return tabs | jobs | {place: f"#/{place}" for place in ("jobs", "cluster", "submit", "api")}


def test_the_printed_address_opens_it_and_the_token_is_gone_from_it(look):
    """I open what `syncbn serve` printed; nobody finds the token in the address bar or the history; a reload still works."""
    view = look()

    assert "token" not in view.page.url
    view.page.reload()
    view.sees("resnet18-sync")


def test_without_a_token_it_asks_for_one(look, filled):
    """A wrong one is refused with what the service says; the right one opens."""
    view = look(token=None)
    view.sees("syncbn serve")
    for token, said_then in (("sbn_wrong", "not admitted"), (filled.token, "resnet18-sync")):
        view.page.get_by_label("Token").fill(token)
        view.button("Open").click()
        view.sees(said_then)
    assert view.complaints == []


def test_an_empty_service_shows_how_to_begin(look, tmp_path):
    """Where there is nothing to see, I am told how to submit the first job."""
    with served(tmp_path) as world:
        view = look(url=str(world.client.base_url), token=world.settings.files.token.read_text().strip())
        command = view.find("main pre").inner_text()
        assert command.startswith("syncbn submit - ")
        assert parse_spec(yaml.safe_load(command.split("SPEC")[1])).resources.workers == 2  # it can be pasted as it is
        expect(view.page.get_by_role("link", name="fill in a form")).to_have_attribute("href", "#/submit")
        view.picture("empty")


def test_ten_thousand_jobs_are_searched_and_filtered(look, filled):
    """I find one of them by a part of its name, and page through the rest."""
    view = look()
    view.page.keyboard.press("/")
    view.page.keyboard.type("EEP-04242")
    expect(view.find("tbody tr")).to_have_count(1)
    view.sees("sweep-04242")
    view.page.get_by_label("Search by name or id").fill("")
    expect(view.find("tbody tr")).to_have_count(50)
    view.page.get_by_role("link", name="Older").click()
    expect(view.row("resnet18-sync")).to_have_count(0)
    view.sees(f"sweep-{NUM_JOBS - 60:05}")
    view.page.get_by_role("combobox", name="State").select_option("recovering")
    expect(view.find("tbody tr")).to_have_count(1)


def test_every_state_is_told_in_words(look, filled):
    """Not by colour alone."""
    view = look()
    for state, job_id in filled.by_state.items():
        expect(view.find(f"tr[data-key={job_id}] .state")).to_have_text(re.compile(rf"\S {state}"))


def test_the_list_is_live_and_keeps_the_focus(look, filled):
    """A job goes on while I am about to open it: the row changes, my place in it stays."""
    job_id = filled.world.start(name="lively")
    view = look()
    link = view.page.get_by_role("link", name="lively")
    link.focus()
    filled.world.say(job_id, 0, metrics(1, step=40, val_accuracy=0.5))
    expect(view.row("lively")).to_contain_text("40 %")
    expect(view.row("lively")).to_contain_text("50.00 %")
    expect(link).to_be_focused()


def test_an_image_is_tried_out(look, filled, tmp_path):
    """Chosen or dropped, it is classified by the checkpoint; what is no image is said to be none."""
    job_id = published(filled.world, small_model(), name="predicts", class_names=[f"species {number}" for number in range(10)]).split("/")[
        3
    ]
    image = tmp_path / "digit.png"
    image.write_bytes(digit(0)[1])
    view = look(f"#/jobs/{job_id}/checkpoints")
    chooser = view.page.get_by_label("Drop an image here, or choose one")
    chooser.set_input_files(image)
    expect(view.page.locator("section", has_text="Try it")).to_contain_text(
        re.compile(r"digit\.png: class (\d), species \1"), timeout=90_000
    )
    view.picture("light-prediction", is_whole=True)
    assert view.barriers() == []
    dropped = view.page.evaluate_handle(
        "() => { const all = new DataTransfer(); all.items.add(new File(['none'], 'words.png', {type: 'image/png'})); return all; }"
    )
    view.page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
    view.sees("no image that can be read")
    assert view.complaints == []


def test_a_million_points_are_drawn_with_their_peak(look, filled):
    """The service sends a thousand of them, and none of the extremes is missing."""
    sizes = []
    view = look()
    view.page.on("response", lambda answer: sizes.append(len(answer.body())) if "max_points" in answer.url else None)
    view.go(f"#/jobs/{filled.long}")
    expect(view.find("#chart-loss")).to_have_attribute("aria-label", re.compile(f"highest 9 \\({PEAK:,}\\)"))
    assert 1000 < max(sizes) < 60_000


def test_a_zoom_shows_what_lies_between(look, filled):
    """The chart asks again for the steps that it shows, and for everything when it is let go."""
    view = look(f"#/jobs/{filled.long}")
    chart = view.find("#chart-loss")
    expect(chart).to_have_attribute("aria-label", re.compile(f"highest 9 \\({PEAK:,}\\)"))
    before = chart.get_attribute("aria-label")
    zoom = "(to) => Plotly.relayout('chart-loss', to)"
    with view.page.expect_response(re.compile(f"from_step={PEAK + 10}&to_step={PEAK + 300}")) as answer:
        view.page.evaluate(zoom, {"xaxis.range[0]": PEAK + 10, "xaxis.range[1]": PEAK + 300})
    points = answer.value.json()["series"][0]["points"]
    assert [step for step, _ in points] == list(range(PEAK + 10, PEAK + 301))
    expect(chart).to_have_attribute("aria-label", re.compile(f"at step {PEAK + 300:,}"))
    view.page.evaluate(zoom, {"xaxis.autorange": True})
    expect(chart).to_have_attribute("aria-label", before)


def test_a_job_shows_what_happened_to_it_live(look, filled):
    """Marks of a recovery and a resize on the charts; a new value reaches the chart without a reload, and nothing jumps."""
    view = look(f"#/jobs/{filled.other}")
    expect(view.find("#chart-loss")).to_have_attribute("aria-label", re.compile("recovery at step 140; 2 to 3 workers at step 220"))
    filled.world.say(filled.other, 0, metrics(5000, step=310, train_loss=7.125))
    expect(view.find("#chart-loss")).to_have_attribute("aria-label", re.compile(r"7\.125 at step 310"))
    shift = """new Promise((done) => new PerformanceObserver((list) => done(list.getEntries().filter((one) => !one.hadRecentInput)
        .reduce((sum, one) => sum + one.value, 0))).observe({type: "layout-shift", buffered: true}) ?? setTimeout(() => done(0), 300))"""
    assert view.page.evaluate(shift) < 0.1


def test_statistics_show_drift_spread_health_and_difference(look, filled):
    """The layer that drifts is named; a layer's channels are drawn against those of an earlier checkpoint."""
    view = look(f"#/jobs/{filled.job}/statistics")
    expect(view.find("#drift")).to_have_attribute("aria-label", re.compile(r"most 0\.89, in layer1\.1\.bn1 at step 1,200"))
    view.page.get_by_role("combobox", name="Show").select_option("variance_drift")
    expect(view.find("#drift")).to_have_attribute("aria-label", re.compile(r"most 0\.445"))
    view.page.get_by_role("combobox", name="Compare with").select_option("100")
    view.sees("farthest from step 100")
    expect(view.row("layer1.1.bn2").last).to_contain_text("dead_channels")
    # Nothing was chosen: the layer that is not sound is looked at first.
    expect(view.find("[data-key=layer] h2").first).to_contain_text("layer1.1.bn2")
    view.sees("1 with findings")
    expect(view.find("#running_mean")).to_have_attribute("aria-label", re.compile("step 200: 64 channels .* step 100: 64 channels"))
    expect(view.find("#layer-channels")).to_have_attribute("aria-label", re.compile("step 200: 64 channels; step 100: 64 channels"))
    view.button("layer2.0.bn1").click()
    expect(view.find("[data-key=layer] h2").first).to_contain_text("layer2.0.bn1")
    expect(view.find("#running_mean")).to_have_attribute("aria-label", re.compile("step 200: 128 channels"))
    view.page.get_by_label("Only layers").fill("layer3")
    expect(view.find("#drift")).to_have_attribute("aria-label", re.compile("4 layers"))


def test_a_layer_is_chosen_in_the_heat_map(look, filled):
    """A click on its row; the row is marked, and a calm job does not look like a storm."""
    view = look(f"#/jobs/{filled.job}/statistics")
    view.find("#drift .nsewdrag").click(position={"x": 40, "y": 4})
    expect(view.find("[data-key=layer] h2").first).to_contain_text("layer1.0.bn1")
    assert view.page.evaluate("document.getElementById('drift').layout.shapes[0].y0") == -0.5
    assert view.page.evaluate("document.getElementById('drift').data[0].zmax") >= 0.5


def test_a_job_that_keeps_no_statistics_says_so(look, filled):
    """Not that something is still to come."""
    job_id = filled.world.start(name="grouped", norm={"kind": "group_norm"})
    look(f"#/jobs/{job_id}/statistics").sees("group_norm keeps no running statistics, so nothing can drift")


def test_a_download_is_checked_against_its_digest(look, filled):
    """A good file arrives under its name; one that was changed on the way does not arrive at all."""
    view = look(f"#/jobs/{filled.job}/checkpoints")
    view.find("summary").first.click()
    download = view.page.get_by_label("Download model.safetensors of step 200")
    with view.page.expect_download() as arrived:
        download.click()
    assert arrived.value.suggested_filename == "model.safetensors"
    view.sees("SHA-256 checked")
    view.page.route("**/files/model.safetensors", lambda route: route.fulfill(body=b"other", headers={"content-length": "5"}))
    download.click()
    expect(view.find("#notices")).to_contain_text("is not what its SHA-256 says")
    view.button("Dismiss").click()
    expect(view.find("#notices")).to_have_text("")


def test_only_what_the_service_can_do_is_offered(look, filled):
    """A service without a route does not show its button."""
    job = f"#/jobs/{filled.job}"
    expect(look(job).button("Cancel")).to_have_count(1)
    expect(look(job, without={"/v1/jobs/{job_id}/cancel"}).button("Cancel")).to_have_count(0)
    expect(look(job).page.get_by_role("link", name="Compare norms")).to_have_count(1)
    expect(look(job, without={"/v1/comparisons"}).page.get_by_role("link", name="Compare norms")).to_have_count(0)


def test_what_the_service_refuses_is_said_with_its_remedy(look, filled):
    """A problem is shown as the service says it."""
    view = look(f"#/jobs/{filled.by_state[State.FAILED]}")
    wrong = {"loc": "state", "value": "x", "expected": "an end", "remedy": "wait for it"}
    problem = {"title": "Conflict", "detail": "its processes are not gone", "errors": [wrong]}
    view.refuses("DELETE", f"**/v1/jobs/{filled.by_state[State.FAILED]}", problem)
    view.button("Delete").click()
    view.button("Delete it").click()
    expect(view.find("#notices")).to_contain_text("its processes are not gone")
    expect(view.find("#notices")).to_contain_text("wait for it")


def test_every_page_by_eyes_axe_and_policy(look, filled):
    """Light: a picture of each page; axe finds no barrier; no word of a job runs; nothing comes from elsewhere."""
    view = look()
    barriers = {}
    for name, address in _pages(filled).items():
        view.go(address)
        view.picture(f"light-{name}", is_whole=True)
        barriers[name] = view.barriers()
    assert {name: found for name, found in barriers.items() if found} == {}
    assert view.page.evaluate("window.injected") is None
    assert view.complaints == []
    assert view.hosts <= {view.url.split("/")[2], "data"}


def test_pages_in_the_dark(look, filled):
    """By the system's wish; the contrast stays."""
    view = look(color_scheme="dark")
    barriers = {}
    pages = _pages(filled)
    for name in ("jobs", "job", "statistics", "checkpoints", "failed", "submit", "comparing"):
        view.go(pages[name])
        view.picture(f"dark-{name}")
        barriers[name] = view.barriers(["color-contrast"])
    assert {name: found for name, found in barriers.items() if found} == {}


def test_the_theme_is_changed_and_remembered(look):
    """Whatever the system wishes."""
    view = look(locale="de-DE")  # a context of its own: what is remembered is the browser's
    ground = "getComputedStyle(document.body).backgroundColor"
    light = view.page.evaluate(ground)
    for _ in range(2):
        view.find("#theme").click()
    view.page.reload()
    view.sees("resnet18-sync")
    assert view.page.evaluate(ground) != light


def test_every_page_on_a_phone(look, filled):
    """Nothing is wider than the screen; what is wide scrolls by itself."""
    view = look(viewport=PHONE, has_touch=True)
    wide = {}
    for name, address in _pages(filled).items():
        view.go(address)
        view.picture(f"phone-{name}")
        wide[name] = view.overflow()
    assert {name: by for name, by in wide.items() if by > 0} == {}


def test_it_is_used_without_a_mouse(look, filled):
    """Skip to the content, open the first job, and come to its first action."""
    view = look()
    view.page.keyboard.press("Tab")
    expect(view.find("#skip")).to_be_focused()
    view.page.keyboard.press("Enter")
    expect(view.find("main")).to_be_focused()
    link = view.page.get_by_role("link", name="resnet18-sync", exact=True)
    link.focus()
    view.page.keyboard.press("Enter")
    expect(view.find("h1")).to_have_text("resnet18-sync")
    view.page.keyboard.press("Tab")
    assert view.page.evaluate("document.activeElement.closest('.actions') !== null")
