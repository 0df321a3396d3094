// The cluster: nodes and what is free on them, the gangs that run, who waits and why.

import { get } from "../api.js";
import { h } from "../dom.js";
import { card, code, listOfFacts, progress, quiet, state, table } from "../elements.js";
import { ago, count, number } from "../format.js";

const LIMIT = 100;
const WITH_RANKS = "starting,running,recovering,pausing,cancelling";

export const open = (query) => ({
  title: "Cluster",
  period_s: 3,
  refresh: async () => {
    const [cluster, queue, { data: live }] = await Promise.all([get("/v1/cluster"), get(`/v1/queue?limit=${LIMIT}&after=${Number(query.get("after") ?? 0)}`), get(`/v1/jobs?limit=${LIMIT}&state=${WITH_RANKS}`)]);
    return [h("h1", {}, "Cluster"), cluster.is_connected ? connected(cluster, live) : card("Not connected", h("p", { class: "reason failed" }, cluster.message)), line(queue)];
  },
});

function connected({ nodes, room, gangs }, live) {
  const use = (name, total, free) => h("span", { class: "progress" }, h("meter", { min: 0, max: total || 1, value: total - free, "aria-label": `${name} in use` }), ` ${number(total - free)} of ${number(total)}`);
  const part = ({ resources, free = {} }, name) => (resources[name] ? use(name, resources[name], free[name] ?? 0) : "–");
  const rows = nodes.map((node) => [h("span", { class: "name" }, node.address), node.is_alive ? "✓ alive" : "✕ gone", part(node, "CPU"), part(node, "GPU"), code(node.id.slice(0, 12))]);
  return [
    room ? card("Room", listOfFacts([["CPUs in use", use("CPUs", room.total_cpus, room.free_cpus)], ["GPUs in use", room.total_gpus ? use("GPUs", room.total_gpus, room.free_gpus) : "none here"], ["gangs", count(gangs.length)]])) : null,
    card("Nodes", table("Nodes", ["address", "condition", "CPUs in use", "GPUs in use", { name: "id", isWide: true }], rows)),
    card("Gangs", gangs.length ? gangsTable(gangs, live) : quiet("No job runs now.")),
  ];
}

function gangsTable(ids, live) {
  const known = new Map(live.map((job) => [job.id, job]));
  const rows = ids.map((id) => {
    const job = known.get(id); // just ended, or one of very many
    const link = h("a", { href: `#/jobs/${id}`, class: "name" }, job?.name ?? id);
    return { key: id, cells: job ? [link, state(job.state), job.world_size, progress(job), h("span", { class: "why long" }, job.message || job.reason), ago(job.started_at ?? job.created_at)] : [link, "–", "–", "–", "–", "–"] };
  });
  return table("Gangs", ["job", "state", { name: "workers", isNumber: true }, "progress", { name: "why", isWide: true }, { name: "since", isWide: true }], rows);
}

function line({ data, has_more: hasMore, next_cursor: cursor }) {
  if (!data.length) return card("Queue", quiet("Nobody waits."));
  const rows = data.map((job) => ({
    key: job.id,
    cells: [job.position, h("a", { href: `#/jobs/${job.id}`, class: "name" }, job.name), job.priority, job.workers, code(job.reason), h("span", { class: "why long" }, job.message), ago(job.created_at)],
  }));
  const columns = [{ name: "place", isNumber: true }, "job", { name: "priority", isNumber: true, isWide: true }, { name: "workers", isNumber: true }, { name: "reason", isWide: true }, "why it waits", { name: "since", isWide: true }];
  return card("Queue", table("Queue", columns, rows), hasMore ? h("a", { href: `#/cluster?after=${cursor}` }, "Further back") : null);
}
