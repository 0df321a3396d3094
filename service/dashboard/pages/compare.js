// Several jobs side by side: one chart for a metric, one table of what they reached and in what they differ.

import { get } from "../api.js";
import { lines, place } from "../charts.js";
import { h } from "../dom.js";
import { button, card, choice, quiet, state, table } from "../elements.js";
import { between, flattened, number, percent } from "../format.js";
import * as comparisons from "./comparisons.js";

const MOST = 12, MAX_POINTS = 600;
// In these two runs of the same thing differ too.
const NOT_A_DIFFERENCE = new Set(["name", "labels", "priority"]);

export function open(query) {
  const id = query.get("comparison"), chosen = [...new Set((query.get("jobs") ?? "").split(",").filter(Boolean))].slice(0, MOST);
  const metric = query.get("metric") ?? "val/accuracy";
  const go = (jobs, name = metric) => location.replace(`#/compare?${new URLSearchParams({ ...(id ? { comparison: id } : { jobs: jobs.join(",") }), metric: name })}`);
  let series = [];
  return {
    title: "Compare",
    period_s: 5,
    refresh: async () => {
      const comparison = id ? await comparisons.find(id) : null;
      const ids = comparison ? comparison.rows.filter((row) => row.state).map((row) => row.job_id) : chosen;
      if (!ids.length && !comparison) return choose(go);
      const jobs = await Promise.all(ids.map((id) => get(`/v1/jobs/${id}`)));
      const asked = new URLSearchParams({ max_points: MAX_POINTS, name: metric });
      const answers = await Promise.all(ids.map((id) => get(`/v1/jobs/${id}/metrics?${asked}`)));
      const names = comparison ? ids.map((one) => comparisons.words(comparison.rows.find((row) => row.job_id === one).value)) : named(jobs);
      series = answers.map((answer, at) => ({ name: names[at], points: answer.series[0].points }));
      const metrics = [...new Set([metric, ...jobs.flatMap((job) => Object.keys(job.metrics))])].sort();
      return [
        h("h1", {}, "Compare"),
        h("div", { class: "row filters" }, choice("Metric", metrics.map((name) => [name, name]), metric, (name) => go(ids, name)), h("a", { class: "button", href: "#/compare" }, "Choose others")),
        place("compare", metric, { isTall: true }), comparison ? comparisons.results(comparison) : results(jobs, ids, go), differences(jobs),
      ];
    },
    after: () => (series.length ? lines("compare", series) : null),
  };
}

/** A name for each job: its own, and where two have the same, the end of its id with it. */
const named = (jobs) => jobs.map(({ name, id }) => (jobs.filter((one) => one.name === name).length > 1 ? `${name} ${id.slice(-5)}` : name));

async function choose(go) {
  const made = await comparisons.list();
  const { data } = await get("/v1/jobs?limit=50");
  const boxes = data.map((job) => h("li", {}, h("label", { class: "check" }, h("input", { type: "checkbox", name: "job", value: job.id }), " ", h("span", { class: "name" }, job.name), " ", state(job.state), h("span", { class: "quiet" }, ` ${job.spec.norm?.kind ?? ""}`))));
  const submit = (event) => {
    event.preventDefault();
    go([...event.target.querySelectorAll("input:checked")].map((box) => box.value));
  };
  return [h("h1", {}, "Compare"), made, card("Which jobs?", data.length ? h("form", { onsubmit: submit }, h("ul", { class: "columns" }, boxes), h("button", {}, "Compare")) : quiet("There are none yet."), quiet("Or choose them in the list of jobs, which can be searched."))];
}

function results(jobs, ids, go) {
  const speed = "throughput/samples_per_s";
  const rows = jobs.map((job) => ({
    key: job.id,
    cells: [
      h("a", { href: `#/jobs/${job.id}`, class: "name" }, job.name), state(job.state), job.spec.norm?.kind ?? "–", job.world_size, percent(job.metrics["val/accuracy"]), number(job.metrics["train/loss"]),
      number(job.metrics[speed], 3), job.started_at ? between(job.started_at, job.finished_at) : "–", button("Remove", () => go(ids.filter((id) => id !== job.id)), { "aria-label": `Remove ${job.name}` }),
    ],
  }));
  const numeric = (name) => ({ name, isNumber: true });
  return card("Results", table("Results", ["job", "state", "norm", { ...numeric("workers"), isWide: true }, numeric("accuracy"), { ...numeric("loss"), isWide: true }, { ...numeric("samples / s"), isWide: true }, { name: "took", isWide: true }, { name: "", label: "remove", isWide: true }], rows));
}

function differences(jobs) {
  const specs = jobs.map((job) => flattened(job.spec));
  const keys = [...new Set(specs.flatMap(Object.keys))].filter((key) => !NOT_A_DIFFERENCE.has(key.split(".")[0]) && new Set(specs.map((spec) => spec[key])).size > 1);
  if (jobs.length < 2) return null;
  if (!keys.length) return card("Differences", quiet("Their specs are the same."));
  return card("Differences", table("Differences of the specs", ["field", ...jobs.map((job) => job.name)], keys.sort().map((key) => [h("code", {}, key), ...specs.map((spec) => spec[key] ?? "–")])));
}
