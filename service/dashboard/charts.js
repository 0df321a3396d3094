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

/** The place of a chart, of a fixed height so that nothing moves when it is drawn. */
export function place(id, title, { isTall = false } = {}) {
  return h("section", { class: "card chart", "data-key": id },
    h("h2", {}, title),
    h("div", { id, class: isTall ? "plot tall" : "plot", "data-keep": true, role: "img", "aria-label": title }),
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
  const words = [...series.map(inWords), ...marks.map(({ step, text }) => `${text} at step ${count(step)}`)];
  return draw(id, traces, { shapes, annotations, xaxis: { title: { text: "step" }, rangemode: "tozero" } }, `${words.join("; ") || "no points yet"}.`, onZoom);
}

/** A grid of layers by steps, in colours that grow lighter with the value and read the same in every kind of sight. */
export function heatmap(id, { steps, names, values, label }) {
  const shown = names.map((name) => (name.length > 28 ? `…${name.slice(-27)}` : name));
  const trace = {
    type: "heatmap", x: steps.map(String), y: names.map((_, at) => at), z: values, customdata: names.map((name) => steps.map(() => escape(name))), colorscale: "Cividis",
    hoverongaps: false, hovertemplate: `%{customdata}<br>step %{x}<br>${label} %{z:.4~g}<extra></extra>`, colorbar: { thickness: 12, title: { text: label, side: "right" } },
  };
  const every = Math.ceil(names.length / 28);
  const ticks = names.map((_, at) => at).filter((at) => at % every === 0);
  const yaxis = { tickvals: ticks, ticktext: ticks.map((at) => escape(shown[at])), autorange: "reversed", showgrid: false };
  const all = values.flatMap((row, layer) => row.map((value, at) => ({ value, layer, at }))).filter(({ value }) => value !== null);
  const worst = all.reduce((most, one) => (one.value > most.value ? one : most), { value: -1 });
  const said = all.length ? `${names.length} layers over ${steps.length} steps; most ${number(worst.value)}, in ${names[worst.layer]} at step ${count(steps[worst.at])}.` : "Nothing measured yet.";
  return draw(id, [trace], { hovermode: "closest", showlegend: false, xaxis: { title: { text: "step" }, type: "category", nticks: 12 }, yaxis }, said);
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
