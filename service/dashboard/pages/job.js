// One job: its head and its actions; the tabs are files of their own.

import { can, eventTypes, get, send } from "../api.js";
import { h } from "../dom.js";
import { TERMINAL, ask, button, code, progress, state, tabs } from "../elements.js";
import { ago, between, count, duration, remaining } from "../format.js";
import { follow } from "../stream.js";
import * as checkpoints from "./checkpoints.js";
import { ROUTE as comparisons } from "./comparisons.js";
import * as events from "./events.js";
import * as logs from "./logs.js";
import * as overview from "./overview.js";
import * as specification from "./specification.js";
import * as statistics from "./statistics.js";

const TABS = { overview, statistics, checkpoints, logs, events, spec: specification };
const NEWS_MS = 1000; // a job that reports a hundred times a second is read once a second

/** The number of a job's newest event. */
export async function newestSeq(id) {
  const { data } = await get(`/v1/jobs/${id}/events?before=${Number.MAX_SAFE_INTEGER}&limit=1`);
  return data[0]?.seq ?? 0;
}

export function open([, id, name = "overview"], query, redraw) {
  const tab = TABS[name] ?? overview;
  const part = tab.open(id, query, redraw);
  let condition = "live", stop = () => {}, isClosed = false, timer = 0;
  const news = () => (timer ||= setTimeout(() => { timer = 0; redraw.now(); }, NEWS_MS));
  const listen = async () => {
    const types = eventTypes().filter((type) => type !== "log").map((type) => `type=${type}`).join("&");
    const after = await newestSeq(id);
    if (isClosed) return;
    stop = follow(`/v1/jobs/${id}/events?${types}`, after, news, (now) => (condition = now));
  };
  // The logs tab has a stream of its own.
  if (!part.isStreaming) listen().catch(() => {});
  return {
    title: `${name} of ${id}`,
    period_s: 10,
    condition: () => part.condition?.() ?? condition,
    refresh: async () => {
      const job = await get(`/v1/jobs/${id}`);
      document.title = `${job.name} · syncbn`;
      return [head(job, redraw), h("div", { class: "above" }, tabs(`Parts of ${job.name}`, links(id, name))), await part.refresh(job)];
    },
    after: () => part.after?.(),
    close: () => {
      isClosed = true;
      clearTimeout(timer);
      stop();
      part.close?.();
    },
  };
}

const links = (id, here) => Object.entries(TABS).map(([name]) => ({ name: name[0].toUpperCase() + name.slice(1), href: `#/jobs/${id}/${name}`, isHere: name === here }));

function head(job, redraw) {
  const left = remaining(job);
  const facts = [
    job.started_at ? `ran ${between(job.started_at, job.finished_at)}` : `waits ${ago(job.created_at)}`, left === null ? null : `about ${duration(left)} left`,
    `${job.world_size} ${job.world_size === 1 ? "worker" : "workers"}`, `step ${count(job.progress.step)}${job.progress.total_steps ? ` of ${count(job.progress.total_steps)}` : ""}`,
    job.priority ? `priority ${job.priority}` : null, origin(job.spec.initialize_from),
  ];
  const why = job.message || job.state === "failed";
  return h("div", { class: "head", "data-key": "head" },
    h("div", { class: "row apart" }, h("h1", {}, job.name), actions(job, redraw)),
    h("p", { class: "facts-line" }, state(job.state), progress(job), facts.filter(Boolean).map((fact) => h("span", {}, fact)), code(job.id)),
    why ? h("p", { class: job.state === "failed" ? "reason failed" : "reason" }, h("code", {}, job.reason), " ", job.message) : null,
    Object.keys(job.labels).length ? h("p", { class: "labels" }, Object.entries(job.labels).map(([key, value]) => h("a", { href: `#/jobs?${new URLSearchParams({ label: `${key}=${value}` })}` }, `${key}=${value}`))) : null);
}

/** The checkpoint that a job began with. */
function origin(reference) {
  const [id, , step] = reference?.split("/") ?? [];
  return id ? h("a", { href: `#/jobs/${id}/checkpoints` }, `from step ${step} of ${id}`) : null;
}

/** What can be done with a job as it stands, by this service. */
function actions(job, redraw) {
  const isOver = TERMINAL.has(job.state), base = `/v1/jobs/${job.id}`;
  const act = (method, path, question, yes) => async () => {
    if (question && !(await ask(question, yes))) return;
    await send(method, base + path).then(redraw.now, redraw.say);
  };
  const has = (method, path) => can(method, `/v1/jobs/{job_id}${path}`);
  const remove = async () => {
    if (await ask(`Delete ${job.name}, its history and its checkpoints?`, "Delete it")) await send("DELETE", base).then(() => (location.hash = "#/jobs"), redraw.say);
  };
  const prioritize = async (event) => send("PATCH", base, { priority: Number(event.target.value) }).then(redraw.now, redraw.say);
  const resize = async (event) => send("POST", `${base}/resize`, { workers: Number(event.target.value) }).then(redraw.now, redraw.say);
  const { workers } = job.spec.resources;
  return h("div", { class: "row actions" },
    has("POST", "/resize") && !isOver && job.state !== "cancelling" ? h("label", { class: "check" }, workers.max ? "workers, at most " : "workers ", h("input", { type: "number", min: workers.min ?? 1, max: 4096, value: workers.max ?? workers, onchange: resize })) : null,
    job.state === "queued" && has("PATCH", "") ? h("label", { class: "check" }, "priority ", h("input", { type: "number", min: -1000, max: 1000, value: job.priority, onchange: prioritize })) : null,
    has("POST", "/pause") && ["queued", "starting", "running", "recovering"].includes(job.state) ? button("Pause", act("POST", "/pause")) : null,
    has("POST", "/resume") && job.state === "paused" ? button("Resume", act("POST", "/resume")) : null,
    h("a", { class: "button", href: `#/submit?from=${job.id}` }, "Fork"),
    can("POST", comparisons) ? h("a", { class: "button", href: `#/compare/new?from=${job.id}` }, "Compare norms") : null,
    has("POST", "/cancel") && !isOver && job.state !== "cancelling" ? button("Cancel", act("POST", "/cancel", `Cancel ${job.name}?`, "Cancel it")) : null,
    has("DELETE", "") && isOver ? button("Delete", remove) : null);
}
