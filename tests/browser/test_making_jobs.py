"""The dashboard in a browser: jobs are submitted, forked and compared."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_chosen_jobs_are_compared(look):
    """Two jobs on the same axes, a table of what they reached, and in what their specs differ."""
    view = look()
    for name in ("resnet18-sync", "resnet18-local"):
        view.page.get_by_label(f"choose {name}").check()
    view.page.get_by_role("link", name="Compare", exact=True).last.click()
    view.sees("norm.kind")
    view.wait_until_drawn()
    expect(view.find("#compare")).to_have_attribute("aria-label", re.compile("resnet18-sync: 0.9679.*resnet18-local: 0.9375"))


def test_a_choice_does_not_wait_for_the_service(look):
    """While the service says nothing, what is chosen is what is compared."""
    view = look()
    view.row("resnet18-sync")
    view.page.route("**/v1/jobs?*", lambda route: None)
    for name in ("resnet18-sync", "resnet18-local"):
        view.page.get_by_label(f"choose {name}").check()
    expect(view.find("#chosen")).to_contain_text("2 chosen")
    expect(view.find("#chosen").get_by_role("link", name="Compare")).to_have_attribute("href", re.compile("jobs=job_.*,job_"))
    view.page.get_by_role("button", name="None").click()
    expect(view.find("#chosen")).to_be_empty()


def test_a_comparison_is_a_table(look, filled):
    """What the service compares is found on the page, row by row."""
    view = look("#/compare")
    view.page.get_by_role("link", name="sync_bn, group_norm").click()
    for kind in ("sync_bn", "group_norm"):
        expect(view.page.get_by_role("table", name="Results of the comparison").locator("tr", has_text=kind)).to_contain_text("queued")


def test_norms_are_compared_by_form(look, filled):
    """From the list of comparisons: kinds are ticked, what is wrong is said beside what it is about, and the table opens."""
    view = look("#/compare")
    view.page.get_by_role("link", name="New comparison").click()
    view.sees("✓ valid: 3 jobs")
    view.page.get_by_label("batch_norm").uncheck()
    view.page.get_by_label("group_norm").uncheck()
    expect(view.find("#kinds-wrong")).to_contain_text("at least 2 items")
    expect(view.button("Start 1 job")).to_be_disabled()
    view.page.get_by_label("ghost_bn").check()
    view.sees("✓ valid: 2 jobs")
    view.page.get_by_label("Batch size").fill("nothing")
    expect(view.find("[id='field-batch_size-wrong']")).to_contain_text("a whole number")
    view.page.get_by_label("Batch size").fill("64")
    view.page.get_by_label("Name").fill("by form")
    expect(view.row("by form ghost_bn")).to_have_count(1)
    view.button("Start 2 jobs").click()
    results = view.page.get_by_role("table", name="Results of the comparison")
    expect(results.locator("tbody tr")).to_have_count(2)
    expect(results.locator("tr", has_text="ghost_bn")).to_contain_text("queued")
    assert view.complaints == []


def test_the_norms_of_a_job_are_compared(look, filled):
    """Its spec is filled in, its own kind is ticked."""
    view = look(f"#/jobs/{filled.job}")
    view.page.get_by_role("link", name="Compare norms").click()
    view.sees("✓ valid: 3 jobs")
    expect(view.page.get_by_label("Name")).to_have_value("resnet18-sync")
    expect(view.page.get_by_label("sync_bn")).to_be_checked()


def test_another_field_is_compared_without_a_mouse(look, filled):
    """Its values are numbers, words or JSON; each that is wrong is named; the field itself is told with what was meant."""
    view = look("#/compare/new")
    view.sees("✓ valid: 3 jobs")
    compare = view.page.get_by_role("combobox", name="Compare")
    compare.focus()
    view.page.keyboard.press("ArrowDown")
    expect(view.page.get_by_label("Learning rate")).to_have_count(0)
    view.page.keyboard.press("Tab")
    expect(view.page.get_by_label("Field, as in a spec")).to_be_focused()
    view.page.keyboard.press("Tab")
    view.page.keyboard.type("0.1\n-1\n")
    expect(view.find("#of-field-wrong")).to_contain_text("-1: expected a number greater than 0")
    expect(view.page.get_by_label("Values, one a line")).to_have_attribute("aria-invalid", "true")
    view.picture("light-comparing-wrong", is_whole=True)
    assert view.barriers() == []
    view.page.get_by_label("Values, one a line").fill("0.1\n0.01")
    view.sees("✓ valid: 2 jobs")
    view.page.get_by_label("Field, as in a spec").fill("optimizer..lr")
    expect(view.find("#varied-wrong")).to_contain_text("a dotted path into a job spec")
    view.page.get_by_label("Field, as in a spec").fill("optimizer")
    view.page.get_by_label("Values, one a line").fill('{"name": "sgd", "lr": 0.1}\n{"name": "adamw"}')
    view.sees("✓ valid: 2 jobs")
    view.page.get_by_label("Values, one a line").press("Tab")
    view.button("Start 2 jobs").press("Enter")
    expect(view.page.get_by_role("table", name="Results of the comparison").locator("tbody tr")).to_have_count(2)
    assert view.complaints == []


def test_a_job_is_submitted_by_form_checked_while_it_is_written(look, filled):
    """What is wrong is said at its field, with what to do; then it gets another number of workers, and is cancelled after a question."""
    view = look("#/submit")
    view.sees("✓ valid")
    view.page.get_by_label("Batch size").fill("nothing")
    expect(view.find("[id='field-batch_size-wrong']")).to_contain_text("expected")
    expect(view.button("Submit")).to_be_disabled()
    view.page.get_by_label("Batch size").fill("64")
    view.page.get_by_label("Normalization", exact=True).select_option("ghost_bn")
    view.page.get_by_label("Normalization, virtual batch size").fill("0")
    expect(view.find("[id='field-norm.args.virtual_batch_size-wrong']")).to_contain_text("greater than or equal to 1")
    view.page.get_by_label("Normalization, virtual batch size").fill("8")
    view.sees("virtual_batch_size: 8")
    view.page.get_by_label("Normalization", exact=True).select_option("sync_bn")
    view.page.get_by_label("Name").fill("by hand")
    view.sees("batch_size: 64")
    view.button("Submit").click()
    expect(view.find("h1")).to_have_text("by hand")
    view.page.get_by_label("workers").fill("3")
    view.page.get_by_label("workers").press("Enter")
    view.sees("3 workers")
    view.button("Cancel").click()
    view.button("Cancel it").click()
    view.sees("cancelled")
    assert view.complaints == []


def test_a_job_is_submitted_as_yaml(look, filled):
    """The form becomes YAML; a typing error is answered with the nearest key; the YAML becomes a form again."""
    view = look("#/submit")
    view.sees("✓ valid")
    view.button("Edit as YAML").click()
    text = view.find("#yaml")
    expect(text).to_have_value(re.compile("kind: sync_bn"))
    text.fill("name: typed\nmodel: {name: resnet18}\ndata: {name: digits}\nbatch_sizes: 7\n")
    view.sees("batch_size")
    text.fill("name: typed\nmodel: {name: resnet18}\ndata: {name: digits}\nbatch_size: 7\n")
    view.sees("✓ valid")
    view.button("Edit as form").click()
    expect(view.page.get_by_label("Batch size")).to_have_value("7")


def test_a_fork_begins_with_the_spec_and_the_checkpoint(look, filled):
    """From a checkpoint of a job, with everything filled in."""
    view = look(f"#/jobs/{filled.job}/checkpoints")
    view.page.get_by_role("link", name="Fork from here").first.click()
    view.sees(f"{filled.job}/checkpoints/200")
    expect(view.page.get_by_label("Name")).to_have_value("resnet18-sync-fork")


def test_other_jobs_are_made_of_a_checkpoint(look, filled):
    """Recalibrated or exported at a click; the new job says where it is from."""
    for press in (
        lambda view: view.page.get_by_role("button", name="Recalibrate").first.click(),
        lambda view: (view.page.get_by_text("Export", exact=True).first.click(), view.button("Export step 200 as onnx").click()),
    ):
        view = look(f"#/jobs/{filled.job}/checkpoints")
        press(view)
        view.page.get_by_role("link", name=f"from step 200 of {filled.job}").click()
        view.sees("Fork from here")
