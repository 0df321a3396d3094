// Charts, drawn by the script of the installed plotly, which is fetched when the first chart is. Zoom by dragging, back by a double click.

import { h } from "./dom.js";
import { count, number } from "./format.js";

// Okabe and Ito's colours, told apart with any kind of sight; the dashes tell them apart without colour.
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
const ON_DARK = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const CONFIG = { displayModeBar: false, responsive: true, displaylogo: false, showTips: false };
let loading = null;

function plotly() {
  loading ??= import("/dashboard/plotly.min.js").then(() => window.Plotly);
  return loading;
}

/** The place of a chart, of a fixed height so that nothing moves when it is drawn; `num_rows` makes it as high as a grid of so many needs. */
export function place(id, title, { num_rows: numRows = 0, tools = null } = {}) {
  const plot = h("div", { id, class: "plot", "data-keep": true, role: "img", "aria-label": title });
  if (numRows) plot.style.height = `${Math.min(44, Math.max(12, 5 + 1.2 * numRows))}rem`;
  return h("section", { class: "card chart", "data-key": id },
    tools ? h("div", { class: "row apart" }, h("h2", {}, title), tools) : h("h2", {}, title),
    plot,
    h("p", { id: `${id}-said`, class: "quiet said", "data-keep": true }));
}

const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";

const lineColour = (at) => (isDark() ? ON_DARK : ON_LIGHT)[at % ON_LIGHT.length];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(more = {}) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 12, t: 8, b: 36 }, uirevision: "kept", dragmode: "zoom",
    font: { color: colour("--quiet"), size: 12, family: "system-ui, sans-serif" }, hovermode: "x unified",
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

/** Tell of every choice of a row in a grid. */
function watchChoice(node) {
  if (node.isChoosable) return;
  node.isChoosable = true;
  node.on("plotly_click", ({ points }) => node.onChoose?.(points[0].y));
}

/** Tell of every zoom along the steps: [first, last], or null where all is shown again. */
function watchZoom(node) {
  if (node.isWatched) return;
  node.isWatched = true;
  node.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from !== undefined && to !== undefined) node.onZoom?.([from, to]);
    else if (change["xaxis.autorange"]) node.onZoom?.(null);
  });
}

async function draw(id, traces, shape, said, onZoom = null) {
  const isEmpty = !traces.some((one) => one.x.length);
  const drawer = isEmpty ? null : await plotly();
  const node = document.getElementById(id);
  if (!node) return; // another page was opened meanwhile
  node.classList.toggle("empty", isEmpty);
  node.setAttribute("aria-label", `${node.closest("section").querySelector("h2").textContent}. ${said}`);
  document.getElementById(`${id}-said`).textContent = isEmpty ? "" : said;
  if (!drawer) return;
  await drawer.react(node, traces, layout({ showlegend: traces.length > 1, ...shape }), CONFIG);
  node.onZoom = onZoom;
  watchZoom(node);
}

/** What a series says, in words: for those who do not see it, and for a glance. */
function inWords({ name, points }) {
  if (!points.length) return `${name}: no points yet`;
  const extreme = (isBetter) => points.reduce((best, point) => (isBetter(point[1], best[1]) ? point : best));
  const low = extreme((a, b) => a < b), high = extreme((a, b) => a > b), last = points.at(-1);
  return `${name}: ${number(last[1])} at step ${count(last[0])}, lowest ${number(low[1])} (${count(low[0])}), highest ${number(high[1])} (${count(high[0])})`;
}

/** The range of an axis whose values are all one: from 0 to twice it, where Plotly would show 1 to both sides of a learning rate of 0.05. */
function flatRange(series) {
  const values = series.flatMap(({ points }) => points.map((one) => one[1]));
  if (!values.length || values.some((value) => value !== values[0])) return null;
  return values[0] === 0 ? [-1, 1] : [Math.min(0, 2 * values[0]), Math.max(0, 2 * values[0])];
}

/**
 * Lines over the steps.
 * @param series [{name, points: [[step, value], ...]}]
 * @param marks [{step, text}], drawn as upright lines
 * @param onZoom told the steps [first, last] that a zoom shows, null where all are shown again
 */
export function lines(id, series, marks = [], onZoom = null) {
  const traces = series.map(({ name, points }, at) => ({
    type: "scatter", mode: points.length === 1 ? "markers" : "lines", name: escape(name), x: points.map((one) => one[0]), y: points.map((one) => one[1]),
    line: { color: lineColour(at), dash: DASHES[at % DASHES.length], width: 2 }, hovertemplate: "%{y:.5~g}",
  }));
  const shapes = marks.map(({ step }) => ({ type: "line", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: colour("--warn"), width: 1.5, dash: "dot" } }));
  const annotations = marks.map(({ step, text }) => ({
    x: step, yref: "paper", y: 1, yanchor: "top", xanchor: "left", text: escape(text), showarrow: false, font: { color: colour("--warn"), size: 11 }, textangle: 90,
  }));
  const flat = flatRange(series);
  const words = [...series.map(inWords), ...marks.map(({ step, text }) => `${text} at step ${count(step)}`)];
  return draw(id, traces, { shapes, annotations, xaxis: { title: { text: "step" }, rangemode: "tozero" }, yaxis: flat ? { range: flat } : { autorange: true } }, `${words.join("; ") || "no points yet"}.`, onZoom);
}

const CALM = 0.5; // Colours reach at least this far, so that the noise of a calm job does not look like a storm.

/** Where colours end: one wild value in fifty does not make the others look alike. */
function ceiling(values) {
  const sorted = values.toSorted((a, b) => a - b);
  return Math.max(CALM, sorted[Math.ceil(0.98 * sorted.length) - 1] ?? 0);
}

/**
 * A grid of layers by steps, in colours that grow lighter with the value and read the same in every kind of sight.
 * @param onChoose told the name of the layer that somebody clicks at
 */
export async function heatmap(id, { steps, names, values, label, unit, chosen }, onChoose) {
  const top = ceiling(values.flat().filter((value) => value !== null));
  const isNarrow = innerWidth < 600, longest = isNarrow ? 14 : 28;
  const shown = names.map((name) => (name.length > longest ? `…${name.slice(1 - longest)}` : name));
  const trace = {
    type: "heatmap", x: steps.map(String), y: names.map((_, at) => at), z: values, customdata: names.map((name) => steps.map(() => escape(name))), colorscale: "Cividis",
    zmin: 0, zmax: top, xgap: steps.length > 60 ? 0 : 1, ygap: names.length > 60 ? 0 : 1,
    hoverongaps: false, hovertemplate: `%{customdata}<br>step %{x}<br>${label} %{z:.4~g} ${unit}<extra></extra>`, colorbar: { thickness: isNarrow ? 6 : 12, title: { text: isNarrow ? "" : unit, side: "right" } },
  };
  const every = Math.ceil(names.length / 28);
  const ticks = names.map((_, at) => at).filter((at) => at % every === 0);
  const yaxis = { tickvals: ticks, ticktext: ticks.map((at) => escape(shown[at])), autorange: "reversed", showgrid: false };
  const all = values.flatMap((row, layer) => row.map((value, at) => ({ value, layer, at }))).filter(({ value }) => value !== null);
  const worst = all.reduce((most, one) => (one.value > most.value ? one : most), { value: -1 });
  const clipped = worst.value > top ? ` Colours end at ${number(top, 2)}.` : "";
  const said = all.length ? `${names.length} layers over ${steps.length} ${steps.length === 1 ? "step" : "steps"}; most ${number(worst.value)}, in ${names[worst.layer]} at step ${count(steps[worst.at])}.${clipped} Click on a layer to look at it.` : "Nothing measured yet.";
  const at = names.indexOf(chosen);
  const shapes = at < 0 ? [] : [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: at - 0.5, y1: at + 0.5, line: { color: colour("--bad"), width: 2 } }];
  await draw(id, [trace], { hovermode: "closest", dragmode: false, showlegend: false, shapes, xaxis: { title: { text: "step" }, type: "category", nticks: 12, showgrid: false }, yaxis }, said);
  const node = document.getElementById(id);
  if (!node?.on) return;
  node.onChoose = (row) => onChoose(names[row]);
  watchChoice(node);
}

/** Every channel's mean, with one standard deviation to both sides; of two checkpoints beside each other. */
export function channels(id, series) {
  const traces = series.map(({ name, means, deviations }, at) => ({
    type: "scatter", mode: "markers", name: escape(name), x: means.map((_, channel) => channel + 0.35 * at), y: means, customdata: deviations,
    marker: { color: lineColour(at), size: means.length > 128 ? 3 : 6, symbol: ["circle", "diamond"][at % 2] },
    error_y: { type: "data", array: deviations, color: lineColour(at), thickness: means.length > 128 ? 0.5 : 1.2, width: 0 }, hovertemplate: "channel %{pointNumber}: %{y:.4~g} ± %{customdata:.4~g}",
  }));
  const words = series.map(({ name, means, deviations }) => {
    const flat = deviations.filter((one) => one !== null && one < 1e-3).length, broken = means.filter((one, at) => one === null || deviations[at] === null).length;
    return `${name}: ${means.length} channels${flat ? `, ${flat} that hardly vary` : ""}${broken ? `, ${broken} not finite` : ""}`;
  });
  return draw(id, traces, { hovermode: "closest", xaxis: { title: { text: "channel" } } }, `${words.join("; ")}.`);
}

/** How values spread: one outline for each series, over the same bins. */
export function distribution(id, series) {
  const traces = series.map(({ name, values }, at) => ({
    type: "histogram", x: values.filter((value) => value !== null), name: escape(name), opacity: 0.7, bingroup: 1, nbinsx: 40,
    marker: { color: lineColour(at), pattern: { shape: ["", "/"][at % 2] } }, hovertemplate: "%{x}: %{y} channels",
  }));
  const words = series.map(({ name, values }) => `${name}: ${values.length} channels from ${number(Math.min(...values))} to ${number(Math.max(...values))}`);
  return draw(id, traces, { barmode: "overlay", yaxis: { title: { text: "channels" } } }, `${words.join("; ")}.`);
}

// Plotly reads a few tags in its texts.
const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
