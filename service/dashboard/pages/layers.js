// All normalization layers, one a row: what was measured last, what the checkpoint has, drawn on one scale.

import { h } from "../dom.js";
import { card, quiet, table } from "../elements.js";
import { duration, number } from "../format.js";
import { health } from "./layer.js";

const numeric = (name) => ({ name, isNumber: true });

export function layersTable(rows, saved, chosen, onChoose) {
  const isTold = rows.some((row) => row.told), against = saved?.against;
  const scales = { running_mean: scale(rows, "running_mean"), running_var: scale(rows, "running_var") };
  const columns = [
    "layer", ...(saved ? ["health"] : []), ...(isTold ? [numeric("mean drift"), { ...numeric("variance drift"), isWide: true }, { ...numeric("between / within"), isWide: true }, { ...numeric("sync time"), isWide: true }] : []),
    ...(against ? [numeric("distance")] : []), ...(saved ? [{ name: "running mean", isWide: true }, { name: "running variance", isWide: true }] : []),
  ];
  const body = rows.map(({ name, told, saved: one }) => ({
    key: name,
    class: name === chosen ? "here" : null,
    cells: [
      h("button", { type: "button", class: "link name", onclick: () => onChoose(name), "aria-pressed": String(name === chosen) }, name || "(the model)"),
      ...(saved ? [one ? health(one.health) : "–"] : []),
      ...(isTold ? [number(told?.newest.mean_drift, 3), number(told?.newest.variance_drift, 3), number(told?.newest.between_to_within, 3), duration(told?.newest.time_s)] : []),
      ...(against ? [number(one?.distance, 3)] : []), ...(saved ? ["running_mean", "running_var"].map((part) => spread(one?.[part], scales[part])) : []),
    ],
  }));
  return card("Layers", table("Layers", columns, body), quiet("Choose a layer to see it above. ", against ? `Distance: to step ${against}. ` : null, "Bars: from the smallest to the largest channel, on one scale for all layers, that of the variance logarithmic; the tick is the mean."));
}

const mapped = { running_mean: (value) => value, running_var: (value) => Math.log10(Math.max(value, 1e-12)) };

/** From where to where the values of all layers go. */
function scale(rows, part) {
  const known = rows.map((row) => row.saved?.[part]).filter((one) => one && one.mean !== null).flatMap((one) => [mapped[part](one.min), mapped[part](one.max)]);
  const low = Math.min(...known), high = Math.max(...known);
  return (value) => (high > low ? (100 * (mapped[part](value) - low)) / (high - low) : 50);
}

function spread(part, at) {
  if (!part || part.mean === null) return part ? "not finite" : "–";
  const bar = h("span", { class: "bar" }), tick = h("span", { class: "tick" });
  bar.style.left = `${at(part.min)}%`;
  bar.style.width = `${at(part.max) - at(part.min)}%`;
  tick.style.left = `${at(part.mean)}%`;
  return h("span", { class: "spread", title: `smallest ${number(part.min)}, mean ${number(part.mean)}, largest ${number(part.max)}` }, h("span", { class: "rail", "aria-hidden": "true" }, bar, tick), h("span", {}, `${number(part.min, 2)} … ${number(part.max, 2)}`));
}
