// What the normalization layers do: drift over the steps, what synchronizing costs, the running statistics of a checkpoint and how they changed.

import { can, get } from "../api.js";
import { distribution, heatmap, place } from "../charts.js";
import { h } from "../dom.js";
import { card, choice, quiet, table } from "../elements.js";
import { count, duration, number, size } from "../format.js";

const STEPS = 200;
const DRIFTS = { mean_drift: "drift of the mean", variance_drift: "drift of the variance" };
const LIVE = "/v1/jobs/{job_id}/statistics";

export function open(id, query, redraw) {
  const base = `/v1/jobs/${id}`;
  const choose = (changes) => {
    const next = new URLSearchParams(query);
    for (const [key, value] of Object.entries(changes)) value ? next.set(key, value) : next.delete(key);
    location.replace(`#/jobs/${id}/statistics?${next}`);
  };
  const drift = query.get("drift") ?? "mean_drift", words = query.get("layers") ?? "";
  const isWanted = ({ name }) => name.toLowerCase().includes(words.toLowerCase());
  let live = { steps: [], layers: [] }, vectors = null;
  return {
    refresh: async () => {
      const [told, { data: checkpoints }] = await Promise.all([can("GET", LIVE) ? get(`${base}/statistics?max_points=${STEPS}`) : live, get(`${base}/checkpoints?limit=100`)]);
      live = { steps: told.steps, layers: told.layers.filter(isWanted) };
      const saved = checkpoints.length ? await readSaved(base, query, checkpoints) : null;
      vectors = saved && query.get("layer") ? await readVectors(base, query, saved) : null;
      return [search(words, choose), can("GET", LIVE) ? liveParts(live, drift, choose) : null, saved ? savedParts(saved, vectors, isWanted, query, choose) : noCheckpoint()];
    },
    after: async () => {
      if (live.steps.length) await heatmap("drift", { steps: live.steps, names: live.layers.map((one) => one.name), values: live.layers.map((one) => one[drift]), label: DRIFTS[drift] });
      if (vectors) await Promise.all(["running_mean", "running_var"].map((part) => distribution(part, vectors.series(part))));
    },
  };
}

function search(words, choose) {
  let timer = 0;
  const oninput = (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => choose({ layers: event.target.value }), 250);
  };
  return h("div", { class: "row filters", role: "search", "data-key": "search" }, h("input", { type: "search", value: words, placeholder: "layer", "aria-label": "Only layers with this in their name", oninput }));
}

// --- live

function liveParts(live, drift, choose) {
  if (!live.steps.length) return card("Drift over the steps", quiet("Nothing measured yet: a rank tells of its layers now and then while it trains."));
  const rows = live.layers.map(({ name, newest }) => [
    h("span", { class: "name" }, name), number(newest.mean_drift, 3), number(newest.variance_drift, 3), number(newest.between_to_within, 3), duration(newest.time_s), count(newest.num_reductions),
    size(newest.bytes_sent), count(newest.num_values), count(newest.effective_num_values && Math.round(newest.effective_num_values)),
  ]);
  const columns = ["layer", ...["mean drift", "variance drift", "between / within ranks", "sync time"].map(numeric), ...["reductions", "sent", "values per channel", "of these independent"].map((name) => ({ ...numeric(name), isWide: true }))];
  return [
    h("div", { class: "row filters", "data-key": "drift-choice" }, choice("Show", Object.entries(DRIFTS), drift, (value) => choose({ drift: value }))),
    place("drift", "Drift between batch and running statistics", { isTall: true }),
    card(`Layers at step ${count(live.steps.at(-1))}`, table("Layers, live", columns, rows),
      quiet("Drift of the mean: |batch − running| in running standard deviations. Drift of the variance: |log ratio|. Between / within: how much the ranks' means differ, against the spread within a rank; the larger, the more synchronizing matters.")),
  ];
}

const numeric = (name) => ({ name, isNumber: true });

// --- in a checkpoint

const noCheckpoint = () => card("Running statistics", quiet("No checkpoint yet: the running statistics are shown from the first one on."));

async function readSaved(base, query, checkpoints) {
  const steps = checkpoints.map((one) => String(one.step));
  const step = steps.includes(query.get("step")) ? query.get("step") : steps[0];
  const against = steps.includes(query.get("against")) && query.get("against") !== step ? query.get("against") : "";
  const answer = await get(`${base}/checkpoints/${step}/statistics${against ? `?against=${against}` : ""}`);
  return { ...answer, steps, step, against };
}

async function readVectors(base, query, { step, against, layers }) {
  const name = query.get("layer");
  if (!layers.some((one) => one.name === name)) return null;
  const asked = new URLSearchParams({ layer: name, ...(against ? { against } : {}) });
  const { layers: [layer] } = await get(`${base}/checkpoints/${step}/statistics?${asked}`);
  const series = (part) => {
    const ours = layer[part].values, minus = layer.difference?.[part].values;
    const theirs = minus && ours.map((value, at) => (value === null || minus[at] === null ? null : value - minus[at]));
    return [{ name: `step ${step}`, values: ours }, ...(theirs ? [{ name: `step ${against}`, values: theirs }] : [])];
  };
  return { name, series };
}

const range = (part, digits = 3) => (part && part.mean !== null ? `${number(part.min, digits)} … ${number(part.mean, digits)} … ${number(part.max, digits)}` : "not finite");

function savedParts(saved, vectors, isWanted, query, choose) {
  const options = saved.steps.map((step) => [step, `step ${count(Number(step))}`]);
  const columns = ["layer", { name: "kind", isWide: true }, numeric("channels"), { ...numeric("batches"), isWide: true }, "running mean", "running variance", "health", ...(saved.against ? ["change of mean", "change of variance"] : [])];
  const rows = saved.layers.filter(isWanted).map((layer) => ({
    key: layer.name,
    class: layer.name === query.get("layer") ? "here" : null,
    cells: [
      h("button", { type: "button", class: "link name", onclick: () => choose({ layer: layer.name === query.get("layer") ? "" : layer.name }), "aria-expanded": String(layer.name === query.get("layer")) }, layer.name || "(the model)"),
      layer.kind, layer.num_channels, count(layer.num_batches_tracked), range(layer.running_mean), range(layer.running_var), health(layer.health),
      ...(saved.against ? [range(layer.difference?.running_mean), range(layer.difference?.running_var)] : []),
    ],
  }));
  return [
    h("div", { class: "row filters", "data-key": "choice" }, choice("Checkpoint", options, saved.step, (step) => choose({ step })), choice("Compare with", [["", "none"], ...options.filter(([step]) => step !== saved.step)], saved.against, (against) => choose({ against }))),
    vectors ? h("div", { class: "charts", "data-key": "vectors" }, place("running_mean", `Running mean of ${vectors.name} over its channels`), place("running_var", `Running variance of ${vectors.name} over its channels`)) : null,
    card("Running statistics", table("Running statistics, smallest … mean … largest over the channels", columns, rows), quiet("Smallest … mean … largest over the channels. Choose a layer to see how its channels spread.")),
  ];
}

const health = (findings) => (findings.length ? findings.map((one) => h("span", { class: "mark bad", title: one.message }, `⚠ ${one.code}`)) : h("span", { class: "mark good" }, "✓ sound"));
