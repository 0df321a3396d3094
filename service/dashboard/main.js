// Puts the dashboard together: which page an address means, when it is read again, the token, the theme.

import { can, get, learn, token } from "./api.js";
import { h, render } from "./dom.js";
import { button, card, problem } from "./elements.js";
import * as cluster from "./pages/cluster.js";
import * as compare from "./pages/compare.js";
import * as comparing from "./pages/comparing.js";
import * as job from "./pages/job.js";
import * as jobs from "./pages/jobs.js";
import * as reference from "./pages/reference.js";
import * as submit from "./pages/submit.js";

const PLACES = [["jobs", "Jobs"], ["compare", "Compare"], ["cluster", "Cluster"], ["submit", "Submit"], ["api", "API"]];
const THEMES = ["auto", "light", "dark"];
const HIDDEN_FACTOR = 5;
const main = document.getElementById("main");
const connection = document.getElementById("connection");
const notices = document.getElementById("notices");

let page = null, timer = 0, turn = 0, isReading = false, isStale = false;

/** #/jobs/ID/logs?rank=1 as {parts: ["jobs", ID, "logs"], query}. */
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
}

function opened({ parts, query }, redraw) {
  const [place = "jobs", id] = parts;
  if (place === "jobs") return id ? job.open(parts, query, redraw) : jobs.open(query, redraw);
  if (place === "compare" && id === "new") return comparing.open(query, redraw);
  const found = { compare, cluster, submit, api: reference }[place];
  if (found) return found.open(query, redraw);
  return { title: "Not here", refresh: () => card("Not here", h("p", {}, "There is no such page. ", h("a", { href: "#/jobs" }, "All jobs"))) };
}

/** Tell the user what went wrong, until it is read. */
function say(error) {
  const notice = h("div", { class: "notice" }, h("div", {}, problem(error)), button("Dismiss", () => notice.remove()));
  notices.replaceChildren(notice);
}

async function go() {
  clearTimeout(timer);
  page?.close?.();
  token.takeFromAddress();
  const mine = ++turn;
  try {
    await learn();
  } catch {
    return unreachable();
  }
  if (mine !== turn) return;
  const before = page?.title;
  const here = route();
  page = opened(here, { now: read, say });
  document.title = `${page.title} · syncbn`;
  places(here.parts[0] ?? "jobs");
  isReading = false;
  if (before !== page.title) {
    render(main, h("p", { class: "quiet" }, "…"));
    scrollTo(0, 0);
    if (before !== undefined) main.focus({ preventScroll: true });
  }
  await read();
}

function places(here) {
  const shown = PLACES.filter(([name]) => name !== "submit" || can("POST", "/v1/jobs"));
  render(document.getElementById("places"), shown.map(([name, text]) => h("a", { href: `#/${name}`, "aria-current": here === name ? "page" : null }, text)));
}

/** Read what the page shows and bring it up to date; again when its period is over, or at once if somebody asks meanwhile. */
async function read() {
  if (isReading) {
    isStale = true;
    return;
  }
  [isReading, isStale] = [true, false];
  clearTimeout(timer);
  const [mine, shown] = [turn, page];
  try {
    const content = await shown.refresh();
    if (mine !== turn) return;
    render(main, content);
    connection.textContent = shown.condition?.() ?? "live";
    await shown.after?.();
  } catch (error) {
    if (mine !== turn) return;
    if (error.status === 401) return askForToken(error.message);
    if (error.status === 404) render(main, card("Not here", h("p", {}, error.message), h("a", { href: "#/jobs" }, "All jobs")));
    else if (error.status) say(error);
    else {
      connection.textContent = "the service does not answer; trying again";
      if (!(error instanceof TypeError)) console.error(error);
    }
  } finally {
    if (mine === turn) isReading = false;
  }
  if (mine === turn) timer = setTimeout(read, isStale ? 0 : (shown.period_s ?? 10) * 1000 * (document.hidden ? HIDDEN_FACTOR : 1));
}

function unreachable() {
  connection.textContent = "the service does not answer; trying again";
  timer = setTimeout(go, 3000);
}

function askForToken(reason) {
  page = null;
  const field = h("input", { type: "password", autocomplete: "off", id: "token", required: true, size: 44 });
  const isKept = h("input", { type: "checkbox", id: "keep" });
  const enter = async (event) => {
    event.preventDefault();
    token.keep(field.value.trim(), isKept.checked);
    await get("/v1/jobs?limit=1").then(go, (error) => {
      token.forget();
      askForToken(error.message);
    });
  };
  const where = h("p", {}, "It is in the file ", h("code", {}, "token"), " of the controller's home; ", h("code", {}, "syncbn serve"), " prints an address that brings it along.");
  main.replaceChildren(card("Token", h("p", {}, reason), where, h("form", { class: "row", onsubmit: enter },
    h("label", { class: "field" }, h("span", {}, "Token"), field), h("label", { class: "check" }, isKept, " keep it in this browser"), h("button", {}, "Open"))));
  field.focus();
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("syncbn.theme", name);
  const control = document.getElementById("theme");
  control.textContent = { auto: "◐", light: "☀", dark: "☾" }[name];
  control.setAttribute("aria-label", `Theme: ${name}. Change it`);
  control.title = `Theme: ${name}`;
}

document.getElementById("theme").onclick = () => {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
  if (page) read();
};
document.getElementById("skip").onclick = (event) => {
  event.preventDefault();
  main.focus();
};
addEventListener("keydown", (event) => {
  const search = document.querySelector("input[type=search]");
  if (event.key !== "/" || !search || event.target.closest("input, textarea, select")) return;
  event.preventDefault();
  search.focus();
});
matchMedia("(prefers-color-scheme: dark)").onchange = () => page && read();
addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => document.hidden || !page || read());
setTheme(THEMES.includes(localStorage.getItem("syncbn.theme")) ? localStorage.getItem("syncbn.theme") : "auto");
go();
