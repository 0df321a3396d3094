// What happened to a job, newest first, without metrics and log lines.

import { eventTypes, get } from "../api.js";
import { h } from "../dom.js";
import { card, choice, quiet, table } from "../elements.js";
import { clock } from "../format.js";

const LIMIT = 200;
const ELSEWHERE = new Set(["log", "metrics", "telemetry"]);

export function open(id, query) {
  const types = eventTypes().filter((type) => !ELSEWHERE.has(type)), chosen = query.get("type") ?? "", before = query.get("before") ?? String(Number.MAX_SAFE_INTEGER);
  return {
    refresh: async () => {
      const asked = (chosen ? [chosen] : types).map((type) => `type=${type}`).join("&");
      const { data, has_more: hasMore, next_cursor: cursor } = await get(`/v1/jobs/${id}/events?${asked}&before=${before}&limit=${LIMIT}`);
      const rows = data.reverse().map((event) => ({ key: String(event.seq), cells: [clock(event.at), event.type, event.attempt ?? "–", event.rank ?? "–", words(event), details(event.data)] }));
      return [
        h("div", { class: "row filters" }, choice("Type", [["", "all"], ...types.map((type) => [type, type])], chosen, (type) => location.replace(`#/jobs/${id}/events${type ? `?type=${type}` : ""}`))),
        card("Events", rows.length ? table("Events", ["at", "type", { name: "attempt", isNumber: true, isWide: true }, { name: "rank", isNumber: true, isWide: true }, "what", { name: "data", isWide: true }], rows) : quiet("None of this kind."),
          hasMore ? h("a", { href: `#/jobs/${id}/events?${new URLSearchParams({ type: chosen, before: cursor })}` }, "Older") : null),
      ];
    },
  };
}

function words({ type, data }) {
  const said = { state: data.state ?? data.phase, checkpoint: `step ${data.step}`, pruned: `steps ${data.steps}`, recovery: `step ${data.step}`, resize: `step ${data.step}`, warning: data.code, end: data.state };
  return h("span", { class: "why long" }, [said[type], data.message].filter((part) => part !== undefined && part !== "").join(": "));
}

// The manifest of a checkpoint is long: it is written out only where it is looked at.
function details(data) {
  const write = (event) => {
    const box = event.target.querySelector("pre");
    if (event.target.open) box.textContent = JSON.stringify(data, null, 1);
  };
  return h("details", { ontoggle: write }, h("summary", {}, "show"), h("pre", { "data-keep": true }));
}
