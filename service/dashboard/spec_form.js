// A spec as a form: what is usual has a field, what is wrong is said at it. And what is about to be sent: checked while it is written.

import { Problem, get, newKey, request } from "./api.js";
import { h } from "./dom.js";

const CHECK_MS = 300;
const FIRST = { name: "digits", model: { name: "resnet18", args: {} }, norm: { kind: "sync_bn" }, data: { name: "digits", args: {} }, batch_size: 128, epochs: 10, optimizer: { name: "sgd", lr: 0.1 }, resources: { workers: 2, gpus_per_worker: 0 }, priority: 0 };
// [field, label, kind of control, and where its choices come from]
const FIELDS = [
  ["name", "Name", "text"], ["model.name", "Model", "models"], ["norm.kind", "Normalization", "norms"], ["data.name", "Data", "datasets"], ["batch_size", "Batch size, over all workers", "number"],
  ["epochs", "Epochs", "number"], ["optimizer.lr", "Learning rate", "number"], ["resources.workers", "Workers", "number"], ["resources.gpus_per_worker", "GPUs per worker", "number"], ["priority", "Priority", "number"],
];

/** The names that a spec may use. */
export async function catalogues() {
  const [models, norms, datasets] = await Promise.all(["models", "norms", "datasets"].map(async (name) => (await get(`/v1/${name}`)).data));
  return { models, norms, datasets };
}

/** The spec to begin with: that of a job, or a small one that works. */
export async function first(id) {
  if (!id) return structuredClone(FIRST);
  const { spec } = await get(`/v1/jobs/${id}`);
  // Of a job that trained nothing: what it trains on for is new.
  const length = spec.steps === 0 ? { steps: null, epochs: FIRST.epochs, export: [], recalibrate: "off" } : {};
  return { ...spec, ...length };
}

/** Give a field of a spec another value. */
export function assign(spec, path, value) {
  if (path === "norm.kind") delete spec.norm?.args; // each kind has its own
  const [last, ...rest] = path.split(".").reverse();
  rest.reverse().reduce((at, name) => (at[name] ??= {}), spec)[last] = value;
}

/**
 * The fields of a spec.
 * @param errors what is wrong with it, as the service says it
 * @param put given the field and the value that somebody gives it
 * @param isShown says of a field whether it is among them
 */
export const controls = (spec, catalogue, errors, put, isShown = () => true) =>
  fields(spec, catalogue).filter(([path]) => isShown(path)).map((field) => control(field, spec, catalogue, errors, put));

/** The fields, and after the kind of norm what this kind takes, as far as it is a number. */
function fields(spec, catalogue) {
  const taken = catalogue.norms?.find((one) => one.name === spec.norm?.kind)?.args.properties ?? {};
  const numbers = Object.entries(taken).filter(([, one]) => (one.anyOf ?? [one]).some(({ type }) => type === "integer" || type === "number"));
  const own = numbers.map(([name, one]) => [`norm.args.${name}`, `Normalization, ${name.replaceAll("_", " ")}`, "number", one]);
  return FIELDS.flatMap((field) => (field[0] === "norm.kind" ? [field, ...own] : [field]));
}

function control([path, label, kind, about], spec, catalogue, errors, put) {
  const value = path.split(".").reduce((at, name) => at?.[name], spec) ?? "";
  const wrong = errors.filter((one) => one.loc === path);
  const id = `field-${path}`, common = { id, ...invalid(id, wrong) };
  const entries = catalogue[kind];
  const read = (event) => put(path, kind === "number" ? numberOf(event.target.value) : event.target.value);
  const input = entries
    ? h("select", { ...common, onchange: read }, entries.map((one) => h("option", { value: one.name, selected: one.name === value }, one.name)))
    : h("input", { ...common, type: kind === "number" ? "text" : kind, inputmode: kind === "number" ? "decimal" : null, placeholder: about?.default ?? null, value, oninput: read });
  const said = entries?.find((one) => one.name === value)?.summary ?? about?.description;
  return h("div", { class: "field", "data-key": path }, h("label", { for: id }, label), input, said ? h("span", { class: "quiet" }, said) : null, complaint(id, wrong));
}

/** What to think twice about. */
export const warned = (warnings) => (warnings.length ? h("ul", { class: "reason" }, warnings.map((one) => h("li", {}, one))) : null);

/** The attributes of a control with something wrong, which `complaint` tells. */
export const invalid = (id, wrong) => (wrong.length ? { "aria-invalid": "true", "aria-describedby": `${id}-wrong` } : {});

/** What is wrong with a control, beside it; `of` is what in it is, where there is more than one thing. */
export const complaint = (id, wrong) => (wrong.length ? h("span", { class: "wrong", id: `${id}-wrong` }, wrong.map((one) => `${one.of ? `${one.of}: ` : ""}expected ${one.expected}; ${one.remedy}`).join("; ")) : null);

// What is no number goes to the service as it is: it says best what was expected.
const numberOf = (text) => (text.trim() === "" ? undefined : Number.isNaN(Number(text)) ? text : Number(text));

/**
 * Something that somebody is about to send to a route: checked by the service while it is written, and stored once.
 * @param body says how it is sent, as for `request`
 * @returns its `answer`, `{error}` where it is refused, and the body that is `answered`; `isReady()` to be sent; `check()` it now; `changed()` says that it is another
 *   one; `send(event)` it, and have what was made, or null; `close()`
 */
export function draft(route, body, redraw) {
  let isCurrent = false, isSending = false, timer = 0, turn = 0, key = newKey();
  const it = {
    answer: null,
    answered: null,
    isReady: () => isCurrent && !isSending && !it.answer.error,
    check: async () => {
      const mine = ++turn, asked = body();
      const found = await request(`${route}?dry_run=true`, { method: "POST", ...asked }).then((one) => one.json()).catch((error) => ({ error }));
      if (mine === turn) [it.answer, it.answered, isCurrent] = [found, asked, true];
      redraw.now();
    },
    changed: () => {
      key = newKey();
      turn++; // what is asked already is about what was there before
      isCurrent = false;
      redraw.now();
      clearTimeout(timer);
      timer = setTimeout(it.check, CHECK_MS);
    },
    send: async (event) => {
      event.preventDefault();
      isSending = true;
      try {
        return await (await request(route, { method: "POST", ...body(), headers: { ...body().headers, "Idempotency-Key": key } })).json();
      } catch (error) {
        // Where it is not known whether it was stored, the same key sent again stores no second one.
        error instanceof Problem ? (it.answer = { error }) : redraw.say(error);
        return null;
      } finally {
        isSending = false;
        redraw.now();
      }
    },
    close: () => clearTimeout(timer),
  };
  return it;
}
