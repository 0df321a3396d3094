// Start a comparison: kinds of normalization, or the values of any other field; the service checks every variant while it is written.

import { h } from "../dom.js";
import { card, choice, code, problem, quiet, table } from "../elements.js";
import { flattened, yaml } from "../format.js";
import { assign, catalogues, complaint, controls, draft, first, invalid, warned } from "../spec_form.js";
import { ROUTE, words } from "./comparisons.js";

const NORM = "norm.kind";
const USUAL = ["sync_bn", "batch_norm", "group_norm"];

export function open(query, redraw) {
  let spec = null, catalogue = {}, isOfNorms = true, field = "optimizer.lr", kinds = new Set(USUAL), text = "";
  const ask = () => ({ spec, field: isOfNorms ? NORM : field, values: isOfNorms ? chosen() : valuesOf(text) });
  // In the order in which they are listed, whichever was chosen first.
  const chosen = () => catalogue.norms.map(({ name }) => name).filter((name) => kinds.has(name));
  const comparison = draft(ROUTE, () => ({ json: ask() }), redraw);
  const then = (change) => (event) => {
    change(event.target);
    comparison.changed();
  };
  const put = (path, value) => {
    assign(spec, path, value);
    comparison.changed();
  };
  const start = async (event) => {
    const made = await comparison.send(event);
    if (made) location.hash = `#/compare?comparison=${made.id}`;
  };
  return {
    title: "New comparison",
    period_s: 3600,
    refresh: async () => {
      if (!spec) {
        catalogue = await catalogues();
        spec = await first(query.get("from"));
        if (catalogue.norms.some(({ name }) => name === spec.norm?.kind)) kinds.add(spec.norm.kind);
        comparison.check();
      }
      const asked = ask(), answered = comparison.answered?.json.values ?? [], errors = comparison.answer?.error?.errors ?? [];
      const ofSpec = errors.filter(({ loc }) => loc.startsWith("spec.")).map((one) => ({ ...one, loc: one.loc.slice("spec.".length) }));
      const what = choice("Compare", [["norms", "kinds of normalization"], ["other", "values of another field"]], isOfNorms ? "norms" : "other", (value) => { isOfNorms = value === "norms"; comparison.changed(); });
      return [
        h("h1", {}, "New comparison"),
        h("form", { onsubmit: start, class: "columns-two", "data-key": "form" },
          h("div", { "data-key": "asked" },
            card("What differs", what, isOfNorms
              ? norms(catalogue.norms, kinds, answered, errors, then(({ value, checked }) => (checked ? kinds.add(value) : kinds.delete(value))))
              : values(field, text, answered, errors, comparison.answer?.specs?.[0] ?? spec, then(({ value }) => (field = value.trim())), then(({ value }) => (text = value)))),
            card("What is the same", controls(spec, catalogue, ofSpec, put, (path) => !isVaried(path, asked.field)),
              h("button", { disabled: !comparison.isReady() }, `Start ${asked.values.length} ${asked.values.length === 1 ? "job" : "jobs"}`))),
          verdict(comparison.answer, comparison.answered)),
      ];
    },
    close: comparison.close,
  };
}

/** Whether a field is what differs, or goes with it: the arguments of a kind of norm are its own. */
const isVaried = (path, field) => path === field || path.startsWith(`${field}.`) || (field === NORM && path.startsWith("norm."));

/** What is wrong with the N-th value, or with the values as such: each once, at least two. */
const ofValue = (errors, at) => errors.filter(({ loc }) => loc.startsWith(`values.${at}:`));
const ofAll = (errors) => errors.filter(({ loc }) => loc === "values" || loc === "");

function norms(entries, kinds, answered, errors, onchange) {
  const boxes = entries.map(({ name, summary }) => {
    const id = `kind-${name}`, at = answered.indexOf(name), wrong = at < 0 ? [] : ofValue(errors, at);
    const box = h("input", { type: "checkbox", id, value: name, checked: kinds.has(name), onchange, ...invalid(id, wrong) });
    return h("li", { "data-key": name }, h("label", { class: "check" }, box, " ", code(name)), h("span", { class: "quiet" }, ` ${summary}`), complaint(id, wrong));
  });
  const wrong = ofAll(errors);
  return h("fieldset", { "data-key": "kinds", ...(wrong.length ? { "aria-describedby": "kinds-wrong" } : {}) }, h("legend", {}, "Kinds of normalization"), h("ul", { class: "choices" }, boxes), complaint("kinds", wrong));
}

function values(field, text, answered, errors, spec, onField, onText) {
  const wrongField = errors.filter(({ loc }) => loc === "field");
  const wrong = [...ofAll(errors), ...answered.flatMap((value, at) => ofValue(errors, at).map((one) => ({ ...one, of: words(value) })))];
  const known = Object.keys(flattened(spec)).map((path) => h("option", { value: path }));
  return h("div", { "data-key": "values" },
    h("div", { class: "field", "data-key": "varied" }, h("label", { for: "varied" }, "Field, as in a spec"), h("input", { id: "varied", type: "text", list: "fields", value: field, spellcheck: "false", autocapitalize: "off", oninput: onField, ...invalid("varied", wrongField) }), h("datalist", { id: "fields" }, known), complaint("varied", wrongField)),
    h("div", { class: "field", "data-key": "of-field" }, h("label", { for: "of-field" }, "Values, one a line"), h("textarea", { id: "of-field", rows: 5, spellcheck: "false", oninput: onText, ...invalid("of-field", wrong) }, text), h("span", { class: "quiet" }, "Numbers, words, or JSON"), complaint("of-field", wrong)));
}

/** What is written, line by line: JSON where it is JSON, else words. */
function valuesOf(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return lines.map((line) => {
    try {
      return JSON.parse(line);
    } catch {
      return line;
    }
  });
}

function verdict(answer, answered) {
  if (!answer) return card("Check", quiet("…"));
  if (answer.error) return card("Check", h("div", { class: "reason failed", role: "status" }, problem(answer.error)));
  const { specs, warnings } = answer, { field, values: compared } = answered.json;
  const rows = specs.map((spec, at) => [code(words(compared[at])), h("span", { class: "name" }, spec.name)]);
  return card("Check", h("p", { class: "mark good", role: "status" }, `✓ valid: ${specs.length} jobs`), warned(warnings),
    table("Jobs that would run", [field, "job"], rows), quiet("What they have in common is seen in the first of them, every default filled in; the same from a shell: ", code(`syncbn compare SPEC.yaml ${field === NORM ? `--norms ${compared.join(",")}` : `--vary '${field}=${compared.map((one) => JSON.stringify(one)).join(",")}'`}`), ":"),
    h("pre", { tabindex: "0", "aria-label": "The first spec as it would run" }, yaml(specs[0])));
}
