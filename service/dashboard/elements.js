// The pieces that pages are made of: cards, tables, states, tabs, questions. They know nothing of the API.

import { h } from "./dom.js";

const SIGNS = { queued: "◷", starting: "◔", running: "▶", recovering: "↻", pausing: "‖", paused: "‖", cancelling: "⊘", succeeded: "✓", failed: "✕", cancelled: "⊘" };

export const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);
export const STATES = Object.keys(SIGNS);

/** A state, told by sign, word and colour. */
export const state = (name) => h("span", { class: `state ${name}` }, h("span", { "aria-hidden": "true" }, SIGNS[name] ?? "·"), ` ${name}`);

export const card = (title, ...children) => h("section", { class: "card", "data-key": title }, h("h2", {}, title), ...children);

export const quiet = (...children) => h("p", { class: "quiet" }, ...children);

export const code = (text) => h("code", {}, text);

/**
 * A table that scrolls for itself.
 * @param label says what it is, for those who hear it
 * @param columns [{name, isWide, isNumber}] or names; the wide ones are not shown on a phone
 * @param rows [{key, cells}] or lists of cells
 */
export function table(label, columns, rows) {
  const all = columns.map((one) => (typeof one === "string" ? { name: one } : one));
  const styles = all.map((one) => [one.isWide && "wide", one.isNumber && "number"].filter(Boolean).join(" ") || null);
  const heads = all.map((one, at) => h("th", { scope: "col", class: styles[at] }, one.name || h("span", { class: "hidden" }, one.label ?? "actions")));
  const body = rows.map((row) => {
    const cells = row.cells ?? row;
    return h("tr", { "data-key": row.key, class: row.class }, cells.map((cell, at) => h("td", { class: styles[at] }, cell)));
  });
  const inner = h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${label}, scrolls` }, inner);
}

export const button = (text, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, text);

export function progress(job) {
  const { step, total_steps: total } = job.progress;
  if (!total) return h("span", { class: "quiet" }, "–");
  return h("span", { class: "progress" }, h("progress", { max: total, value: step, "aria-label": `progress of ${job.name}` }), h("span", {}, `${Math.min(100, Math.floor((100 * step) / total))} %`));
}

export const tabs = (label, entries) =>
  h("nav", { class: "tabs", "aria-label": label }, entries.map(({ name, href, isHere }) => h("a", { href, "aria-current": isHere ? "page" : null }, name)));

export function choice(label, options, chosen, onchange) {
  const inner = options.map(([value, text]) => h("option", { value, selected: value === chosen }, text));
  return h("label", { class: "field" }, h("span", {}, label), h("select", { onchange: (event) => onchange(event.target.value) }, inner));
}

/** What went wrong, with what to do about each thing. */
export function problem(error) {
  const remedies = (error.errors ?? []).map((one) => h("li", {}, code(one.loc), ` ${JSON.stringify(one.value)}: expected ${one.expected}; ${one.remedy}`));
  return [h("strong", {}, error.title ?? "Error"), " ", error.message, remedies.length ? h("ul", {}, remedies) : null];
}

/** Ask before something that cannot be taken back. Resolves to true or false. */
export function ask(question, yes, no = "Keep") {
  return new Promise((resolve) => {
    const done = (answer) => () => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    const dialog = h("dialog", { "aria-label": question, oncancel: done(false) }, h("p", {}, question),
      h("div", { class: "row" }, button(no, done(false)), button(yes, done(true), { class: "grave" })));
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const listOfFacts = (facts) => h("dl", { class: "facts" }, facts.filter(Boolean).map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value))));
