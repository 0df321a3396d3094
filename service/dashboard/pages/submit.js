// Submit a job: a form for what is usual, YAML for everything; the service checks both while they are written.

import { Problem, get, newKey, request } from "../api.js";
import { h } from "../dom.js";
import { card, code, problem, quiet } from "../elements.js";
import { yaml } from "../format.js";

const CHECK_MS = 300;
const FIRST = { name: "digits", model: { name: "resnet18", args: {} }, norm: { kind: "sync_bn" }, data: { name: "digits", args: {} }, batch_size: 128, epochs: 10, optimizer: { name: "sgd", lr: 0.1 }, resources: { workers: 2, gpus_per_worker: 0 }, priority: 0 };
// [field, label, kind of control, and where its choices come from]
const FIELDS = [
  ["name", "Name", "text"], ["model.name", "Model", "models"], ["norm.kind", "Normalization", "norms"], ["data.name", "Data", "datasets"], ["batch_size", "Batch size, over all workers", "number"],
  ["epochs", "Epochs", "number"], ["optimizer.lr", "Learning rate", "number"], ["resources.workers", "Workers", "number"], ["resources.gpus_per_worker", "GPUs per worker", "number"], ["priority", "Priority", "number"],
];

export function open(query, redraw) {
  let spec = null, text = null, catalogue = {}, answer = null, isCurrent = false, isSending = false, timer = 0, turn = 0, key = newKey();

  const body = () => (text === null ? { json: spec } : { body: text, headers: { "Content-Type": "application/yaml" } });
  async function check() {
    const mine = ++turn;
    const found = await request("/v1/jobs?dry_run=true", { method: "POST", ...body() }).then(async (one) => ({ spec: (await one.json()).spec }), (error) => ({ error }));
    if (mine === turn) [answer, isCurrent] = [found, true];
    redraw.now();
  }
  const changed = () => {
    key = newKey();
    turn++; // what is asked already is about what was there before
    isCurrent = false;
    redraw.now();
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_MS);
  };
  const put = (path, value) => {
    if (path === "norm.kind") delete spec.norm?.args; // each kind has its own
    const [last, ...rest] = path.split(".").reverse();
    rest.reverse().reduce((at, name) => (at[name] ??= {}), spec)[last] = value;
    changed();
  };
  const write = (event) => {
    text = event.target.value;
    changed();
  };
  const toYaml = () => { text = yaml(spec); redraw.now(); };
  const toForm = () => { spec = answer.spec; text = null; redraw.now(); };
  async function submit(event) {
    event.preventDefault();
    isSending = true;
    try {
      const made = await (await request("/v1/jobs", { method: "POST", ...body(), headers: { ...body().headers, "Idempotency-Key": key } })).json();
      location.hash = `#/jobs/${made.id}`;
    } catch (error) {
      // Where it is not known whether the job was stored, the same key sent again makes no second one.
      error instanceof Problem ? (answer = { error }) : redraw.say(error);
    } finally {
      isSending = false;
      redraw.now();
    }
  }
  return {
    title: "Submit",
    period_s: 3600,
    refresh: async () => {
      if (!spec) {
        const [models, norms, datasets] = await Promise.all(["models", "norms", "datasets"].map(async (name) => (await get(`/v1/${name}`)).data));
        catalogue = { models, norms, datasets };
        spec = await first(query);
        check();
      }
      const isForm = text === null;
      return [
        h("h1", {}, query.get("from") ? "Fork" : "Submit"),
        h("form", { onsubmit: submit, class: "columns-two", "data-key": "form" },
          card(isForm ? "Form" : "YAML", isForm ? fields(spec, catalogue).map((field) => control(field, spec, catalogue, answer?.error, put)) : h("textarea", { id: "yaml", "aria-label": "Spec as YAML", rows: 28, spellcheck: "false", oninput: write }, text),
            h("div", { class: "row" }, h("button", { disabled: isSending || !isCurrent || !answer?.spec }, "Submit"),
              isForm ? h("button", { type: "button", onclick: toYaml }, "Edit as YAML") : h("button", { type: "button", onclick: toForm, disabled: !isCurrent || !answer?.spec }, "Edit as form"))),
          verdict(answer, isForm ? spec : null)),
      ];
    },
    close: () => clearTimeout(timer),
  };
}

/** The spec to begin with: that of the job which is forked, or a small one that works. */
async function first(query) {
  const id = query.get("from"), checkpoint = query.get("checkpoint");
  if (!id) return structuredClone(FIRST);
  const { spec } = await get(`/v1/jobs/${id}`);
  // Of a job that trained nothing: what it trains on for is new.
  const length = spec.steps === 0 ? { steps: null, epochs: FIRST.epochs, export: [], recalibrate: "off" } : {};
  return { ...spec, ...length, name: `${spec.name}-fork`.slice(0, 128), ...(checkpoint ? { initialize_from: `${id}/checkpoints/${checkpoint}` } : {}) };
}

/** The fields, and after the kind of norm what this kind takes, as far as it is a number. */
function fields(spec, catalogue) {
  const taken = catalogue.norms?.find((one) => one.name === spec.norm?.kind)?.args.properties ?? {};
  const numbers = Object.entries(taken).filter(([, one]) => (one.anyOf ?? [one]).some(({ type }) => type === "integer" || type === "number"));
  const own = numbers.map(([name, one]) => [`norm.args.${name}`, `Normalization, ${name.replaceAll("_", " ")}`, "number", one]);
  return FIELDS.flatMap((field) => (field[0] === "norm.kind" ? [field, ...own] : [field]));
}

function control([path, label, kind, about], spec, catalogue, error, put) {
  const value = path.split(".").reduce((at, name) => at?.[name], spec) ?? "";
  const wrong = error?.errors?.filter((one) => one.loc === path) ?? [];
  const id = `field-${path}`;
  const common = { id, "aria-invalid": wrong.length ? "true" : null, "aria-describedby": wrong.length ? `${id}-wrong` : null };
  const entries = catalogue[kind];
  const read = (event) => put(path, kind === "number" ? numberOf(event.target.value) : event.target.value);
  const input = entries
    ? h("select", { ...common, onchange: read }, entries.map((one) => h("option", { value: one.name, selected: one.name === value }, one.name)))
    : h("input", { ...common, type: kind === "number" ? "text" : kind, inputmode: kind === "number" ? "decimal" : null, placeholder: about?.default ?? null, value, oninput: read });
  const said = entries?.find((one) => one.name === value)?.summary ?? about?.description;
  return h("div", { class: "field", "data-key": path }, h("label", { for: id }, label), input, said ? h("span", { class: "quiet" }, said) : null,
    wrong.length ? h("span", { class: "wrong", id: `${id}-wrong` }, wrong.map((one) => `expected ${one.expected}; ${one.remedy}`).join("; ")) : null);
}

// What is no number goes to the service as it is: it says best what was expected.
const numberOf = (text) => (text.trim() === "" ? undefined : Number.isNaN(Number(text)) ? text : Number(text));

function verdict(answer, spec) {
  if (!answer) return card("Check", quiet("…"));
  if (answer.error) return card("Check", h("div", { class: "reason failed", role: "status" }, problem(answer.error)), spec ? h("pre", {}, yaml(spec)) : null);
  return card("Check", h("p", { class: "mark good", role: "status" }, "✓ valid"), quiet("What would run, every default filled in; the same for ", code("syncbn submit SPEC.yaml"), ":"), h("pre", { tabindex: "0", "aria-label": "The spec as it would run" }, yaml(answer.spec)));
}
