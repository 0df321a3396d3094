// The first tab of a job: charts with marks where something happened, the states it went through, the attempts.

import { get } from "../api.js";
import { lines, place } from "../charts.js";
import { h } from "../dom.js";
import { card, state, table } from "../elements.js";
import { between, clock } from "../format.js";

const MAX_POINTS = 1000, MAX_MARKS = 20;
// What is drawn together. Of the rest, what has the same last word is.
const CHARTS = [
  ["loss", "Loss", (name) => name.endsWith("/loss")],
  ["accuracy", "Accuracy", (name) => name.endsWith("/accuracy")],
  ["lr", "Learning rate", (name) => name === "lr"],
  ["throughput", "Throughput, samples per second", (name) => name === "throughput/samples_per_s"],
];
const TITLES = { "data/wait_s": "Waiting for data, seconds a step", "sync/time_s": "Synchronizing statistics, seconds a step", "sync/bytes": "Synchronizing statistics, bytes a step" };

export function open(id) {
  let charts = [], marks = [];
  const zoomed = new Map(); // by chart, the series between the steps that it shows, in more detail
  const redraw = (chart) => lines(`chart-${chart.id}`, zoomed.get(chart.id) ?? chart.series, marks, (steps) => zoom(chart, steps));
  const zoom = async (chart, steps) => {
    zoomed.delete(chart.id);
    if (steps) {
      const asked = new URLSearchParams({ max_points: MAX_POINTS, from_step: Math.max(0, Math.floor(steps[0])), to_step: Math.max(0, Math.ceil(steps[1])) });
      chart.series.forEach(({ name }) => asked.append("name", name));
      const found = await get(`/v1/jobs/${id}/metrics?${asked}`).catch(() => null); // without it the chart stays as coarse as it is
      if (found) zoomed.set(chart.id, found.series);
    }
    return redraw(charts.find((one) => one.id === chart.id) ?? chart);
  };
  return {
    refresh: async (job) => {
      const [{ series }, { data: events }] = await Promise.all([
        get(`/v1/jobs/${id}/metrics?max_points=${MAX_POINTS}`), get(`/v1/jobs/${id}/events?type=recovery&type=resize&before=${Number.MAX_SAFE_INTEGER}&limit=${MAX_MARKS}`),
      ]);
      charts = arranged(series);
      marks = events.filter((event) => typeof event.data.step === "number").map(({ type, data }) => ({ step: data.step, text: type === "resize" ? `${data.old_world_size} to ${data.new_world_size} workers` : type }));
      return [
        h("div", { class: "charts", "data-key": "charts" }, charts.map(({ id: name, title }) => place(`chart-${name}`, title))),
        timeline(job), attempts(job),
      ];
    },
    after: () => Promise.all(charts.map(redraw)),
  };
}

function arranged(series) {
  const together = CHARTS.map(([id, title, isOf]) => ({ id, title, series: series.filter(({ name }) => isOf(name)) }));
  const others = Map.groupBy(series.filter(({ name }) => !CHARTS.some(([, , isOf]) => isOf(name))), familyOf);
  return [...together, ...[...others].map(([family, members], at) => ({ id: `other-${at}`, title: TITLES[family] ?? family, series: members }))];
}

/** train/top5 and val/top5 are one chart; so are val/iou/0, val/iou/1 and their like. */
function familyOf({ name }) {
  const parts = name.split("/");
  if (name in TITLES || !["train", "val"].includes(parts[0])) return name;
  return parts[1];
}

/** Each state with how long the job was in it; the strip above shows the same to scale. */
function timeline(job) {
  const steps = job.transitions.map((one, at) => ({ ...one, until: job.transitions[at + 1]?.at ?? job.finished_at }));
  const length = (one) => Math.max(1, Date.parse(one.until ?? new Date()) - Date.parse(one.at));
  const strip = h("div", { class: "strip", "aria-hidden": "true" }, steps.slice(0, job.finished_at ? -1 : undefined).map((one) => {
    const part = h("span", { class: one.state, title: `${one.state} ${between(one.at, one.until)}` });
    part.style.flexGrow = String(length(one));
    return part;
  }));
  const rows = steps.map((one, at) => [clock(one.at), state(one.state), at === steps.length - 1 && job.finished_at ? "–" : !one.until ? `${between(one.at)} so far` : between(one.at, one.until), h("code", {}, one.reason), h("span", { class: "why long" }, one.message)]);
  return card("States", strip, table("States", ["since", "state", "for", "reason", { name: "in words", isWide: true }], rows));
}

function attempts(job) {
  if (!job.attempts.length) return null;
  const rows = job.attempts.map((one) => [one.number, h("code", {}, one.reason), one.world_size, clock(one.started_at), between(one.started_at, one.finished_at)]);
  return card("Attempts", table("Attempts", [{ name: "number", isNumber: true }, "begun because", { name: "workers", isNumber: true }, "since", "for"], rows));
}
