// What the ranks wrote: the newest lines, older ones on demand, new ones as they come; per rank; searched to the first line.

import { get } from "../api.js";
import { h } from "../dom.js";
import { TERMINAL, button, card, choice } from "../elements.js";
import { clock, count, folded, plain } from "../format.js";
import { search } from "../search.js";
import { follow } from "../stream.js";

const PAGE = 500, MOST = 20_000, LONGEST = 500;

export function open(id, query, redraw) {
  const rank = query.get("rank") ?? "", filter = rank === "" ? "" : `rank=${rank}`;
  let lines = [], drawn = [], oldest = null, isFollowing = true, condition = "live", isRead = false, stop = () => {}, isClosed = false, timer = 0;
  // What is looked for; of the lines that were read it is found here, of older ones by the service.
  let words = query.get("search") ?? "", found = [], numSearched = 0, state = "over", running = null;
  const path = `/v1/jobs/${id}/logs?${filter}`;

  const read = async (before) => {
    const page = await get(`${path}&limit=${PAGE}&before=${before}`);
    lines = [...page.data, ...lines];
    oldest = page.has_more ? page.next_cursor : null;
  };
  const begin = async (job) => {
    isRead = true;
    await read(Number.MAX_SAFE_INTEGER);
    look();
    if (isClosed || TERMINAL.has(job.state)) return void (condition = "ended");
    const take = (event) => {
      if (event.type === "end") return redraw.now();
      lines.push(event);
      if (lines.length > MOST) {
        lines = lines.slice(-MOST / 2);
        oldest = String(lines[0].seq);
        look();
      }
      timer ||= setTimeout(() => { timer = 0; draw(); }, 100);
    };
    stop = follow(path, lines.at(-1)?.seq ?? 0, take, (now) => (condition = now));
  };
  /** Begin to search what was not read; what was searched before is let go of. */
  function look() {
    running?.stop();
    [found, numSearched, state, running, drawn] = [[], 0, "over", null, []];
    if (!words || !oldest || isClosed) return;
    state = "searching";
    running = search(path, words, oldest, (news) => {
      found = [...news.lines, ...found];
      ({ numSearched, state } = news);
      if (news.error) redraw.say(news.error);
      draw();
    });
  }
  const lookFor = (event) => {
    words = event.target.value;
    look();
    draw();
  };
  function draw() {
    const box = document.getElementById("log");
    if (!box) return;
    const wanted = folded(words), height = box.scrollHeight;
    const shown = wanted ? [...found, ...lines.filter((line) => folded(line.message).includes(wanted))] : lines;
    // Lines that are drawn stay; what is new is put before or behind them.
    const isMore = drawn.length && shown[0] === drawn[0] && shown.length >= drawn.length;
    const isOlder = drawn.length && !isMore && shown.at(-1) === drawn.at(-1);
    if (isMore) box.append(...shown.slice(drawn.length).map((line) => row(line, wanted)));
    else if (isOlder) box.prepend(...shown.slice(0, -drawn.length).map((line) => row(line, wanted)));
    else box.replaceChildren(...shown.map((line) => row(line, wanted)));
    drawn = [...shown]; // a copy: the lines grow
    box.classList.toggle("empty", !lines.length);
    document.getElementById("log-said").textContent = said(shown.length);
    document.getElementById("log-found").textContent = wanted && state !== "searching" ? said(shown.length) : "";
    document.getElementById("older").hidden = !oldest || wanted !== "";
    document.getElementById("search-on").hidden = state !== "full" && state !== "broken";
    if (isFollowing) box.scrollTop = box.scrollHeight;
    else if (isOlder) box.scrollTop += box.scrollHeight - height;
  }
  function said(numShown) {
    if (!lines.length) return "no lines: what a model, a task or a data set prints or logs comes here; what happens to the job is under Events";
    if (!words) return `${count(lines.length)} lines${oldest ? ", older ones not read yet" : ""}`;
    const [hits, all] = [`${count(numShown)} ${numShown === 1 ? "line" : "lines"} found`, `${count(lines.length + numSearched)} lines looked at`];
    return { over: `${hits}, ${all}`, searching: `searching: ${hits}, ${all} …`, full: `${hits}, ${all}; there may be more`, broken: `${hits}, ${all}; the search broke off` }[state];
  }
  const older = async () => {
    await read(oldest).catch(redraw.say);
    draw();
  };
  const searchOn = () => {
    state = "searching";
    running.on();
    draw();
  };
  const go = (value) => location.replace(`#/jobs/${id}/logs?${new URLSearchParams({ ...(value === "" ? {} : { rank: value }), ...(words ? { search: words } : {}) })}`);
  return {
    isStreaming: true,
    condition: () => condition,
    refresh: async (job) => {
      if (!isRead) await begin(job);
      const ranks = [["", "all"], ...Array.from({ length: job.world_size }, (_, at) => [String(at), `rank ${at}`])];
      return card("Logs", h("div", { class: "row filters" },
        h("input", { type: "search", placeholder: "search the log ( / )", "aria-label": "Search the log", maxlength: LONGEST, value: words, oninput: lookFor }),
        choice("Rank", ranks, rank, go),
        h("label", { class: "check" }, h("input", { type: "checkbox", id: "follow", checked: true, onchange: (event) => { isFollowing = event.target.checked; draw(); } }), " follow"),
        button(`Read ${PAGE} older lines`, older, { id: "older", hidden: true, "data-keep": true }), button("Search on", searchOn, { id: "search-on", hidden: true, "data-keep": true }),
        h("span", { id: "log-said", class: "quiet", "data-keep": true }), h("span", { id: "log-found", class: "hidden", role: "status", "data-keep": true })),
      h("div", { id: "log", class: "log", tabindex: "0", role: "log", "aria-label": "Log lines", "data-keep": true, onwheel: (event) => event.deltaY < 0 && unfollow() }));
    },
    after: draw,
    close: () => {
      isClosed = true;
      clearTimeout(timer);
      running?.stop();
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
  const parts = [], lower = folded(message);
  let at = 0;
  for (let hit = lower.indexOf(wanted); hit >= 0; hit = lower.indexOf(wanted, at)) {
    parts.push(message.slice(at, hit), h("mark", {}, message.slice(hit, hit + wanted.length)));
    at = hit + wanted.length;
  }
  return [...parts, message.slice(at)];
}
