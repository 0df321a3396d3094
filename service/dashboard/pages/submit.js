// Submit a job: a form for what is usual, YAML for everything; the service checks both while they are written.

import { h } from "../dom.js";
import { card, code, problem, quiet } from "../elements.js";
import { yaml } from "../format.js";
import { assign, catalogues, controls, draft, first, warned } from "../spec_form.js";

export function open(query, redraw) {
  let spec = null, text = null, catalogue = {};
  const job = draft("/v1/jobs", () => (text === null ? { json: spec } : { body: text, headers: { "Content-Type": "application/yaml" } }), redraw);
  const put = (path, value) => {
    assign(spec, path, value);
    job.changed();
  };
  const write = (event) => {
    text = event.target.value;
    job.changed();
  };
  const toYaml = () => { text = yaml(spec); redraw.now(); };
  const toForm = () => { spec = job.answer.spec; text = null; redraw.now(); };
  const submit = async (event) => {
    const made = await job.send(event);
    if (made) location.hash = `#/jobs/${made.id}`;
  };
  return {
    title: "Submit",
    period_s: 3600,
    refresh: async () => {
      if (!spec) {
        catalogue = await catalogues();
        spec = await begin(query);
        job.check();
      }
      const isForm = text === null, errors = job.answer?.error?.errors ?? [];
      return [
        h("h1", {}, query.get("from") ? "Fork" : "Submit"),
        h("form", { onsubmit: submit, class: "columns-two", "data-key": "form" },
          card(isForm ? "Form" : "YAML", isForm ? controls(spec, catalogue, errors, put) : h("textarea", { id: "yaml", "aria-label": "Spec as YAML", rows: 28, spellcheck: "false", oninput: write }, text),
            h("div", { class: "row" }, h("button", { disabled: !job.isReady() }, "Submit"),
              isForm ? h("button", { type: "button", onclick: toYaml }, "Edit as YAML") : h("button", { type: "button", onclick: toForm, disabled: !job.isReady() }, "Edit as form"))),
          verdict(job.answer, isForm ? spec : null)),
      ];
    },
    close: job.close,
  };
}

/** The spec to begin with: that of the job which is forked, or a small one. */
async function begin(query) {
  const id = query.get("from"), checkpoint = query.get("checkpoint"), spec = await first(id);
  return id ? { ...spec, name: `${spec.name}-fork`.slice(0, 128), ...(checkpoint ? { initialize_from: `${id}/checkpoints/${checkpoint}` } : {}) } : spec;
}

function verdict(answer, spec) {
  if (!answer) return card("Check", quiet("…"));
  if (answer.error) return card("Check", h("div", { class: "reason failed", role: "status" }, problem(answer.error)), spec ? h("pre", {}, yaml(spec)) : null);
  return card("Check", h("p", { class: "mark good", role: "status" }, "✓ valid"), warned(answer.warnings), quiet("What would run, every default filled in; the same for ", code("syncbn submit SPEC.yaml"), ":"), h("pre", { tabindex: "0", "aria-label": "The spec as it would run" }, yaml(answer.spec)));
}
