// Comparisons that the service made: one spec, alike but for one field, as jobs; what came of each in one table.

import { can, get } from "../api.js";
import { h } from "../dom.js";
import { card, quiet, state, table } from "../elements.js";
import { ago, count, duration, number, size } from "../format.js";

export const ROUTE = "/v1/comparisons";
const numeric = (name, more = {}) => ({ name, isNumber: true, ...more });

/** The newest comparisons as a card; nothing where this service makes none. */
export async function list() {
  if (!can("GET", ROUTE)) return null;
  const { data } = await get(`${ROUTE}?limit=50`);
  const start = can("POST", ROUTE) ? h("a", { class: "button", href: "#/compare/new" }, "New comparison") : null;
  if (!data.length) return card("Comparisons", quiet("None yet: the same job with several kinds of normalization, or several values of any other field."), start);
  const rows = data.map((one) => ({ key: one.id, cells: [h("a", { href: `#/compare?comparison=${one.id}` }, one.variants.map((variant) => words(variant.value)).join(", ")), h("code", {}, one.field), one.state, ago(one.created_at)] }));
  return card("Comparisons", table("Comparisons", ["variants", "field", "state", { name: "age", isWide: true }], rows), start && h("p", {}, start));
}

export const find = (id) => get(`${ROUTE}/${encodeURIComponent(id)}`);

/** The table of a comparison, as the service answers it. */
export function results({ field, rows }) {
  const scores = [...new Set(rows.flatMap((row) => Object.keys(row.validation)))].sort();
  const lines = rows.map((row) => ({
    key: row.job_id,
    cells: [
      h("a", { href: `#/jobs/${row.job_id}` }, words(row.value)), row.state ? state(row.state) : "deleted", row.total_steps ? `${count(row.step)} / ${count(row.total_steps)}` : count(row.step), number(row.train_loss),
      ...scores.map((name) => (row.validation[name] ? `${number(row.validation[name].last)} (${number(row.validation[name].best)})` : "–")),
      number(row.samples_per_s, 3), row.sync_time_s === null ? "–" : duration(row.sync_time_s), row.sync_bytes === null ? "–" : size(row.sync_bytes), row.health?.status ?? "–",
    ],
  }));
  const columns = [field, "state", numeric("step", { isWide: true }), numeric("train/loss", { isWide: true }), ...scores.map((name) => numeric(`${name} (best)`)), numeric("samples / s"), numeric("sync time a step"), numeric("sent a step", { isWide: true }), "health"];
  return card("Results", table("Results of the comparison", columns, lines));
}

export const words = (value) => (typeof value === "string" ? value : JSON.stringify(value));
