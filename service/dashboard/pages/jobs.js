// The list of jobs: live, filtered and searched by the service, so that it is as quick with ten thousand as with ten.

import { can, get, send } from "../api.js";
import { h, render } from "../dom.js";
import { STATES, TERMINAL, ask, button, card, choice, code, progress, quiet, state, table } from "../elements.js";
import { ago, duration, percent, remaining } from "../format.js";

const LIMIT = 50, SEARCH_MS = 250;
const COLUMNS = [
  { name: "", label: "chosen", isWide: true }, "name", "state", "progress", { name: "accuracy", isNumber: true }, { name: "norm", isWide: true },
  { name: "workers", isNumber: true, isWide: true }, { name: "left", isWide: true }, { name: "why", isWide: true }, { name: "age", isWide: true },
];

// Complete as it is: whoever installed a package has no file to submit yet.
const FIRST = `syncbn submit - --watch <<SPEC
{name: digits, model: {name: resnet18, args: {width: 16}}, data: {name: digits},
 epochs: 3, optimizer: {name: sgd, lr: 0.05}, resources: {workers: 2}}
SPEC`;

const chosen = new Map(); // of all pages of the list: id -> state

export function open(query, redraw) {
  const address = (changes) => {
    const next = new URLSearchParams(query);
    for (const [key, value] of Object.entries({ after: "", ...changes })) value ? next.set(key, value) : next.delete(key);
    return `#/jobs?${next}`;
  };
  return { title: "Jobs", period_s: 3, refresh: () => refresh(query, address, redraw) };
}

async function refresh(query, address, redraw) {
  const asked = new URLSearchParams(query);
  asked.set("limit", LIMIT);
  const { data, has_more: hasMore, next_cursor: cursor } = await get(`/v1/jobs?${asked}`);
  const isFiltered = ["state", "search", "label", "after"].some((key) => query.get(key));
  if (!data.length && !isFiltered) return emptyState();
  return [
    h("h1", {}, "Jobs"),
    filters(query, address),
    h("section", { class: "card" }, data.length ? table("Jobs", COLUMNS, data.map((job) => row(job, redraw))) : quiet("No job is like that."),
      h("div", { class: "row" }, query.get("after") ? h("a", { href: address({}) }, "Newest") : null, hasMore ? h("a", { href: address({ after: cursor }) }, "Older") : null, selection(redraw))),
  ];
}

function filters(query, address) {
  let timer = 0;
  const go = (changes) => location.replace(address(changes));
  const search = h("input", {
    type: "search", value: query.get("search") ?? "", placeholder: "name or id ( / )", "aria-label": "Search by name or id",
    oninput: (event) => {
      clearTimeout(timer);
      timer = setTimeout(() => go({ search: event.target.value }), SEARCH_MS);
    },
  });
  const label = h("input", {
    value: query.get("label") ?? "", placeholder: "team=vision", size: 14, "aria-label": "Label, KEY=VALUE", onchange: (event) => go({ label: event.target.value.includes("=") ? event.target.value : "" }),
  });
  const options = [["", "all states"], ["queued,starting,running,recovering,pausing,paused,cancelling", "not ended"], ...STATES.map((one) => [one, one])];
  return h("div", { class: "row filters", role: "search" }, search, choice("State", options, query.get("state") ?? "", (value) => go({ state: value })), label);
}

function row(job, redraw) {
  const choose = (event) => {
    event.target.checked ? chosen.set(job.id, job.state) : chosen.delete(job.id);
    showSelection(redraw);
  };
  if (chosen.has(job.id)) chosen.set(job.id, job.state);
  const left = remaining(job);
  return {
    key: job.id,
    cells: [
      h("input", { type: "checkbox", "aria-label": `choose ${job.name}`, onchange: choose }),
      h("a", { href: `#/jobs/${job.id}`, class: "name" }, job.name), state(job.state), progress(job), percent(job.metrics["val/accuracy"]),
      job.spec.norm?.kind ?? "–", job.world_size, left === null ? "–" : duration(left), why(job), ago(job.created_at),
    ],
  };
}

/** Why a job is as it is; that one which succeeded did all it should goes without saying. */
const why = (job) => h("span", { class: "why", title: job.message || null }, job.state === "succeeded" && job.reason === "completed" ? "–" : job.message || job.reason);

const selection = (redraw) => h("span", { class: "row end", id: "chosen" }, whatToDo(redraw));

/** At once, not when the service has answered again: whoever is quick would compare what was chosen before. */
const showSelection = (redraw) => render(document.getElementById("chosen"), whatToDo(redraw));

function whatToDo(redraw) {
  if (!chosen.size) return [];
  const live = [...chosen].filter(([, one]) => !TERMINAL.has(one) && one !== "cancelling").map(([id]) => id);
  const cancelAll = async () => {
    if (!(await ask(`Cancel ${live.length} jobs?`, "Cancel them"))) return;
    for (const id of live) await send("POST", `/v1/jobs/${id}/cancel`).catch(redraw.say);
    redraw.now();
  };
  const forget = () => {
    chosen.clear();
    for (const box of document.querySelectorAll("main td input[type=checkbox]")) box.checked = false;
    showSelection(redraw);
  };
  return [
    `${chosen.size} chosen`, h("a", { href: `#/compare?jobs=${[...chosen.keys()].join(",")}`, class: "button" }, "Compare"),
    live.length && can("POST", "/v1/jobs/{job_id}/cancel") ? button(`Cancel ${live.length}`, cancelAll) : null, button("None", forget),
  ];
}

const emptyState = () => [
  h("h1", {}, "No jobs yet"),
  card("Submit the first one", h("p", {}, "Here: ", h("a", { href: "#/submit" }, "fill in a form"), ". Or from a shell on this machine:"), h("pre", {}, FIRST),
    quiet("It appears here as soon as it is queued. ", code("syncbn demo"), " shows the whole path on real data.")),
];
