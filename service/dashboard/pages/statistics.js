// What the normalization layers do: drift over the steps, the layer that is looked at, and all of them in a table. The layer and the table are files of their own.

import { can, get } from "../api.js";
import { heatmap, place } from "../charts.js";
import { h } from "../dom.js";
import { card, choice, listOfFacts, quiet } from "../elements.js";
import { count, duration, number } from "../format.js";
import { layerCharts, layerPanel } from "./layer.js";
import { layersTable } from "./layers.js";

const STEPS = 200;
const DRIFTS = { mean_drift: ["drift of the mean", "running standard deviations"], variance_drift: ["drift of the variance", "|log of the ratio|"] };
const LIVE = "/v1/jobs/{job_id}/statistics";
const WITHOUT = new Set(["group_norm", "layer_norm", "instance_norm", "none"]);

export function open(id, query) {
  const base = `/v1/jobs/${id}`;
  const choose = (changes) => {
    const next = new URLSearchParams(query);
    for (const [key, value] of Object.entries(changes)) value ? next.set(key, value) : next.delete(key);
    location.replace(`#/jobs/${id}/statistics?${next}`);
  };
  const drift = query.get("drift") in DRIFTS ? query.get("drift") : "mean_drift", words = query.get("layers") ?? "";
  const isWanted = ({ name }) => name.toLowerCase().includes(words.toLowerCase());
  let live = { steps: [], layers: [] }, layer = null;
  return {
    refresh: async (job) => {
      const [told, { data: checkpoints }] = await Promise.all([can("GET", LIVE) ? get(`${base}/statistics?max_points=${STEPS}`) : live, get(`${base}/checkpoints?limit=100`)]);
      const saved = checkpoints.length ? await readSaved(base, query, checkpoints) : null;
      live = { steps: told.steps, layers: told.layers.filter(isWanted) };
      const rows = joined(live.layers, saved?.layers.filter(isWanted) ?? []);
      layer = await readLayer(base, saved, rows.find(({ name }) => name === query.get("layer")) ?? mostTelling(rows), live.steps);
      return [
        filters(words, saved, choose),
        inShort(live, saved, rows),
        can("GET", LIVE) ? driftPart(live, drift, job, choose) : null,
        layer ? layerPanel(layer) : null,
        rows.length ? layersTable(rows, saved, layer?.name, (name) => { choose({ layer: name }); show(); }) : card("Layers", quiet(saved || live.steps.length ? "No layer has this in its name." : "No checkpoint yet: the running statistics are shown from the first one on.")),
      ];
    },
    after: async () => {
      const [label, unit] = DRIFTS[drift];
      const grid = { steps: live.steps, names: live.layers.map((one) => one.name), values: live.layers.map((one) => one[drift]), label, unit, chosen: layer?.name };
      if (live.steps.length && live.layers.length) await heatmap("drift", grid, (name) => choose({ layer: name }));
      if (layer) await layerCharts(layer);
    },
  };
}

/** Whoever chose a layer in the table below sees it. */
const show = () => document.querySelector('[data-key="layer"]')?.scrollIntoView({ block: "start" });

/** What is known of each layer while it trains, and in the checkpoint, in the model's order. */
function joined(told, saved) {
  const rows = new Map(saved.map((one) => [one.name, { name: one.name, saved: one }]));
  for (const one of told) rows.set(one.name, { ...rows.get(one.name), name: one.name, told: one });
  return [...rows.values()];
}

/** The layer to begin with: one that is not sound, else the one that drifts most now. */
function mostTelling(rows) {
  const ill = rows.find(({ saved }) => saved?.health.length);
  return ill ?? rows.reduce((most, one) => ((one.told?.newest.mean_drift ?? -1) > (most?.told?.newest.mean_drift ?? -1) ? one : most), rows[0]);
}

async function readSaved(base, query, checkpoints) {
  const steps = checkpoints.map((one) => String(one.step));
  const step = steps.includes(query.get("step")) ? query.get("step") : steps[0];
  const against = steps.includes(query.get("against")) && query.get("against") !== step ? query.get("against") : "";
  const answer = await get(`${base}/checkpoints/${step}/statistics${against ? `?against=${against}` : ""}`);
  return { ...answer, steps, step, against };
}

async function readLayer(base, saved, row, steps) {
  if (!row?.saved) return row ? { ...row, steps } : null;
  const asked = new URLSearchParams({ layer: row.name, ...(saved.against ? { against: saved.against } : {}) });
  const { layers: [whole] } = await get(`${base}/checkpoints/${saved.step}/statistics?${asked}`);
  return { ...row, steps, whole, step: saved.step, against: saved.against };
}

function filters(words, saved, choose) {
  let timer = 0;
  const oninput = (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => choose({ layers: event.target.value }), 250);
  };
  const options = saved?.steps.map((step) => [step, `step ${count(Number(step))}`]) ?? [];
  return h("div", { class: "row filters", role: "search", "data-key": "filters" },
    h("input", { type: "search", value: words, placeholder: "layer", "aria-label": "Only layers with this in their name", oninput }),
    saved ? choice("Checkpoint", options, saved.step, (step) => choose({ step })) : null,
    saved ? choice("Compare with", [["", "none"], ...options.filter(([step]) => step !== saved.step)], saved.against, (against) => choose({ against })) : null);
}

/** What somebody who looks only once has to know. */
function inShort(live, saved, rows) {
  if (!rows.length) return null;
  const most = (of) => rows.reduce((best, row) => ((of(row) ?? -1) > (best ? of(best) : -1) ? row : best), null);
  const driftOf = (row) => row.told?.newest.mean_drift, distanceOf = (row) => row.saved?.distance;
  const drifting = most(driftOf), farthest = most(distanceOf), ill = rows.filter((row) => row.saved?.health.length);
  const time_s = live.layers.reduce((sum, one) => sum + one.newest.time_s, 0);
  return card("In short",
    listOfFacts([
      ["layers", count(rows.length)],
      saved && [`health at step ${count(Number(saved.step))}`, ill.length ? h("span", { class: "mark bad" }, `⚠ ${count(ill.length)} with findings`) : h("span", { class: "mark good" }, "✓ all sound")],
      drifting && [`drifts most at step ${count(live.steps.at(-1))}`, h("code", {}, drifting.name), ` by ${number(driftOf(drifting), 3)} standard deviations`],
      farthest && [`farthest from step ${count(Number(saved.against))}`, h("code", {}, farthest.name), `, distance ${number(distanceOf(farthest), 3)}`],
      time_s > 0 && ["synchronizing, a step", duration(time_s)],
    ]),
    h("details", { "data-key": "how" }, h("summary", {}, "How to read this"),
      h("p", {}, "In training a layer normalizes by the batch; in evaluation, and wherever the model is used, by its running mean and variance. ", h("strong", {}, "Drift"), " says how far apart the two are. It is large in the first steps and fades. Where it stays, or comes back, the layer's inputs move faster than its statistics follow, and the model predicts worse than it trains."),
      h("p", {}, "What helps: a lower learning rate, a larger ", h("code", {}, "norm.momentum"), ", a larger batch, or ", h("code", {}, "recalibrate"), ", which estimates the statistics anew after training."),
      h("p", {}, h("strong", {}, "Between / within ranks"), " says how much the ranks' means differ, against the spread within a rank: the larger, the more synchronizing matters. ", h("strong", {}, "Distance"), " of two checkpoints is the symmetric Kullback-Leibler divergence of the channels, without a unit: 0.01 is a shift of a tenth of a standard deviation, 1 is another kind of data.")));
}

function driftPart(live, drift, job, choose) {
  const which = choice("Show", Object.entries(DRIFTS).map(([name, [label]]) => [name, label]), drift, (value) => choose({ drift: value }));
  if (live.steps.length && !live.layers.length) return null;
  if (!live.steps.length) return card("Drift between batch and running statistics", quiet(nothingYet(job)));
  return place("drift", "Drift between batch and running statistics", { num_rows: live.layers.length, tools: which });
}

function nothingYet({ spec, finished_at: end }) {
  const kind = spec.norm?.kind;
  if (WITHOUT.has(kind)) return `${kind} keeps no running statistics, so nothing can drift.`;
  return end ? "Nothing was measured: the job ended before its second step, or its model was compiled whole." : "Nothing measured yet: rank 0 tells of its layers at the second, fifth, 10th, 20th and 50th step, then every hundredth, in a short job more often.";
}
