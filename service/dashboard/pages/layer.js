// One normalization layer: what is known of it in words, its drift, and its channels one by one and as they spread.

import { channels, distribution, lines, place } from "../charts.js";
import { h } from "../dom.js";
import { listOfFacts } from "../elements.js";
import { count, number, size } from "../format.js";

export function layerPanel({ name, saved, told, step, against }) {
  const newest = told?.newest;
  const facts = [
    saved && ["kind", saved.kind], saved && ["channels", count(saved.num_channels)], saved && ["batches seen", count(saved.num_batches_tracked)],
    saved && ["momentum", number(saved.momentum)], saved && ["eps", String(saved.eps)],
    against && [`distance to step ${count(Number(against))}`, number(saved?.distance, 3)],
    against && ["largest shift of a mean", `${number(saved?.mean_shift, 3)} standard deviations`],
    newest && ["values per channel", count(newest.num_values), independent(newest)], newest?.num_reductions > 0 && ["sent, a step", `${size(newest.bytes_sent)} in ${newest.num_reductions} reductions`],
  ];
  return h("section", { class: "card layer", "data-key": "layer", "aria-label": `Layer ${name}` },
    h("h2", {}, "Layer ", h("code", {}, name || "(the model)"), " ", saved ? health(saved.health) : null),
    listOfFacts(facts),
    saved?.health.length ? h("ul", {}, saved.health.map((one) => h("li", {}, h("code", {}, one.code), ` ${one.message}`))) : null,
    h("div", { class: "charts" },
      told ? place("layer-drift", "Drift over the steps") : null,
      saved ? place("layer-channels", `Channels at step ${count(Number(step))}: mean ± standard deviation`) : null,
      saved ? place("running_mean", "How the running means spread") : null,
      saved ? place("running_var", "How the running variances spread") : null));
}

const independent = ({ effective_num_values: some, num_values: all }) => (some && all && some < 0.9 * all ? `, as many as ${count(Math.round(some))} independent ones` : null);

export const health = (findings) => (findings.length ? findings.map((one) => h("span", { class: "mark bad", title: one.message }, `⚠ ${one.code}`)) : h("span", { class: "mark good" }, "✓ sound"));

export async function layerCharts({ told, whole, steps, step, against }) {
  if (told) {
    const course = (values) => values.map((value, at) => [steps[at], value]).filter(([, value]) => value !== null);
    await lines("layer-drift", [{ name: "of the mean, in standard deviations", points: course(told.mean_drift) }, { name: "of the variance, |log ratio|", points: course(told.variance_drift) }]);
  }
  if (!whole) return;
  const of = (part) => [{ name: `step ${step}`, values: whole[part].values }, ...earlier(whole, part, against)];
  const [means, variances] = [of("running_mean"), of("running_var")];
  await channels("layer-channels", means.map((one, at) => ({ name: one.name, means: one.values, deviations: variances[at].values.map((value) => (value === null ? null : Math.sqrt(Math.max(0, value)))) })));
  await distribution("running_mean", means);
  await distribution("running_var", variances);
}

/** The other checkpoint's values: these minus their difference. */
function earlier(whole, part, against) {
  const minus = whole.difference?.[part].values;
  return minus ? [{ name: `step ${against}`, values: whole[part].values.map((value, at) => (value === null || minus[at] === null ? null : value - minus[at])) }] : [];
}
