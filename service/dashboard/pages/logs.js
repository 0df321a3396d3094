// What the ranks wrote: the newest lines, older ones on demand, new ones as they come; per rank, searched.

import { get } from "../api.js";
import { h } from "../dom.js";
import { TERMINAL, button, card, choice } from "../elements.js";
import { clock, plain } from "../format.js";
import { follow } from "../stream.js";

const PAGE = 500, MOST = 20_000;

export function open(id, query, redraw) {
  const rank = query.get("rank") ?? "", filter = rank === "" ? "" : `&rank=${rank}`;
  let lines = [], drawn = [], oldest = null, isFollowing = true, words = "", condition = "live", isRead = false, stop = () => {}, isClosed = false, timer = 0;
  const path = `/v1/jobs/${id}/logs`;

  const read = async (before) => {
    const page = await get(`${path}?limit=${PAGE}&before=${before}${filter}`);
    lines = [...page.data, ...lines];
    oldest = page.has_more ? page.next_cursor : null;
  };
  const begin = async (job) => {
    isRead = true;
    await read(Number.MAX_SAFE_INTEGER);
    if (isClosed || TERMINAL.has(job.state)) return void (condition = "ended");
    const take = (event) => {
      if (event.type === "end") return redraw.now();
      lines.push(event);
      if (lines.length > MOST) lines = lines.slice(-MOST / 2);
      timer ||= setTimeout(() => { timer = 0; draw(); }, 100);
    };
    stop = follow(`${path}?${filter.slice(1)}`, lines.at(-1)?.seq ?? 0, take, (now) => (condition = now));
  };
  function draw() {
    const box = document.getElementById("log");
    if (!box) return;
    const wanted = words.toLowerCase();
    const shown = wanted ? lines.filter((line) => line.message.toLowerCase().includes(wanted)) : lines;
    // Lines that are drawn stay; what is new is put before or behind them.
    const isMore = drawn.length && shown[0] === drawn[0] && shown.length >= drawn.length;
    if (isMore) box.append(...shown.slice(drawn.length).map((line) => row(line, wanted)));
    else box.replaceChildren(...shown.map((line) => row(line, wanted)));
    drawn = [...shown]; // a copy: the lines grow
    box.classList.toggle("empty", !lines.length);
    document.getElementById("log-said").textContent = lines.length ? `${shown.length} of ${lines.length} lines${oldest ? ", older ones not read yet" : ""}` : "no lines: what a model, a task or a data set prints or logs comes here; what happens to the job is under Events";
    if (isFollowing) box.scrollTop = box.scrollHeight;
  }
  return {
    isStreaming: true,
    condition: () => condition,
    refresh: async (job) => {
      if (!isRead) await begin(job);
      const ranks = [["", "all"], ...Array.from({ length: job.world_size }, (_, at) => [String(at), `rank ${at}`])];
      const older = async () => {
        const box = document.getElementById("log"), height = box.scrollHeight;
        await read(oldest).catch(redraw.say);
        drawn = [];
        draw();
        if (!isFollowing) box.scrollTop += box.scrollHeight - height;
        redraw.now();
      };
      return card("Logs", h("div", { class: "row filters" },
        h("input", { type: "search", placeholder: "search these lines ( / )", "aria-label": "Search in the lines that were read", oninput: (event) => { words = event.target.value; drawn = []; draw(); } }),
        choice("Rank", ranks, rank, (value) => location.replace(`#/jobs/${id}/logs${value === "" ? "" : `?rank=${value}`}`)),
        h("label", { class: "check" }, h("input", { type: "checkbox", id: "follow", checked: true, onchange: (event) => { isFollowing = event.target.checked; draw(); } }), " follow"),
        oldest ? button(`Read ${PAGE} older lines`, older) : null, h("span", { id: "log-said", class: "quiet", "data-keep": true })),
      h("div", { id: "log", class: "log", tabindex: "0", role: "log", "aria-label": "Log lines", "data-keep": true, onwheel: (event) => event.deltaY < 0 && unfollow() }));
    },
    after: draw,
    close: () => {
      isClosed = true;
      clearTimeout(timer);
      stop();
    },
  };
  function unfollow() {
    isFollowing = false;
    document.getElementById("follow").checked = false;
  }
}

function row(line, wanted) {
  const message = plain(line.message);
  return h("div", { class: `line ${line.level ?? ""}` }, h("time", { title: clock(line.at) }, clock(line.at).slice(-8)), h("span", { class: "rank" }, line.rank ?? "–"), h("span", { class: "text" }, marked(message, wanted)));
}

function marked(message, wanted) {
  if (!wanted) return message;
  const parts = [], lower = message.toLowerCase();
  let at = 0;
  for (let hit = lower.indexOf(wanted); hit >= 0; hit = lower.indexOf(wanted, at)) {
    parts.push(message.slice(at, hit), h("mark", {}, message.slice(hit, hit + wanted.length)));
    at = hit + wanted.length;
  }
  return [...parts, message.slice(at)];
}
