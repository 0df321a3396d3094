// The dashboard: the public API shown live. Everything that a job named or wrote reaches the page as text nodes, never as markup.

const TERMINAL = new Set(["succeeded", "failed", "cancelled"]);
const LOG_LINES = 500;
const main = document.getElementById("main");
const connection = document.getElementById("connection");

// --- elements

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const isDrawing = ["svg", "path", "line", "text"].includes(name);
  const made = isDrawing ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick" || key === "onsubmit") made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child ?? ""))));
  return made;
}

function table(heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

const card = (title, ...children) => element("section", {}, element("h2", {}, title), ...children);
const stateOf = (state) => element("span", { class: `state ${state}` }, state);
const number = (value, digits = 4) => (typeof value === "number" ? String(Number(value.toPrecision(digits))) : "–");

function size(bytes) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (bytes < 1024 || unit === "GiB") return `${number(bytes, 3)} ${unit}`;
    bytes /= 1024;
  }
}

function age(time) {
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  const [length, unit] = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]].find(([length]) => seconds >= length) ?? [1, "s"];
  return `${Math.floor(seconds / length)} ${unit}`;
}

function progressOf(job) {
  const { step, total_steps: total } = job.progress;
  if (!total) return element("span", { class: "quiet" }, "–");
  return element("span", {}, element("progress", { max: total, value: step, "aria-label": "progress" }), ` ${step}/${total}`);
}

// --- the API

function takeToken() {
  const given = /^#token=(.+)$/.exec(location.hash);
  if (!given) return;
  sessionStorage.setItem("token", decodeURIComponent(given[1]));
  history.replaceState(null, "", "/#/");
}

async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { Authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}` } });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw Object.assign(new Error(problem.detail ?? `the service answered ${response.status}`), { status: response.status });
}

const get = async (path) => (await call(path)).json();

async function save(path, name) {
  const link = element("a", { href: URL.createObjectURL(await (await call(path)).blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- the list of jobs

function emptyState() {
  return card(
    "No jobs yet",
    element("p", {}, "Submit the first one from a shell on this machine:"),
    element("pre", {}, "syncbn submit service/cli/digits.yaml --follow"),
    element("p", { class: "quiet" }, "It appears here as soon as it is queued."),
  );
}

async function showJobs() {
  const { data } = await get("/v1/jobs?limit=100");
  if (!data.length) return [emptyState()];
  const rows = data.map((job) => [
    element("a", { href: `#/jobs/${job.id}` }, job.name), stateOf(job.state), progressOf(job), number(job.metrics["train/loss"]),
    number(job.metrics["val/accuracy"]), job.world_size, age(job.created_at),
  ]);
  return [card("Jobs", table(["name", "state", "progress", "loss", "accuracy", "workers", "age"], rows))];
}

// --- one job

const seen = { id: null, after: 0, events: [], logs: [], statistics: null };

async function readEvents(id) {
  if (seen.id !== id) Object.assign(seen, { id, after: 0, events: [], logs: [], statistics: null });
  for (let isMore = true; isMore; ) {
    const page = await get(`/v1/jobs/${id}/events?after=${seen.after}&limit=1000`);
    // Another job was opened meanwhile, or another turn has read the same page.
    if (seen.id !== id || !page.data.length || page.data[0].seq <= seen.after) return;
    for (const event of page.data) {
      if (event.type === "log") seen.logs.push(`[${event.rank ?? "-"}] ${event.data.message}`);
      else if (event.type !== "metrics") seen.events.push(event);
    }
    seen.after = page.data.at(-1).seq;
    seen.logs.splice(0, seen.logs.length - LOG_LINES);
    seen.events.splice(0, seen.events.length - LOG_LINES);
    isMore = page.has_more;
  }
}

function chart(title, series) {
  const shown = series.filter((one) => one.points.length > 1);
  if (!shown.length) return card(title, element("p", { class: "quiet" }, "no points yet"));
  const all = shown.flatMap((one) => one.points);
  const bounds = (index) => all.reduce(([low, high], point) => [Math.min(low, point[index]), Math.max(high, point[index])], [Infinity, -Infinity]);
  const [left, right] = bounds(0), [low, high] = bounds(1);
  const x = (step) => 48 + (340 * (step - left)) / (right - left || 1), y = (value) => 150 - (135 * (value - low)) / (high - low || 1);
  const drawing = element("svg", { viewBox: "0 0 400 176", role: "img", "aria-label": `${title} from ${number(low)} to ${number(high)}` });
  for (const value of [low, high]) {
    drawing.append(element("line", { class: "grid", x1: 48, x2: 388, y1: y(value), y2: y(value) }));
    drawing.append(element("text", { x: 42, y: y(value) + 4, "text-anchor": "end" }, number(value, 3)));
  }
  drawing.append(element("text", { x: 48, y: 170 }, `step ${left}`), element("text", { x: 388, y: 170, "text-anchor": "end" }, right));
  const names = ["first", "second"];
  shown.forEach((one, index) => {
    const d = one.points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    drawing.append(element("path", { d, class: names[index] }));
  });
  const keys = shown.map((one, index) => element("span", { class: `key ${names[index]}` }, `${one.name} ${number(one.points.at(-1)[1])}`));
  return card(title, drawing, ...keys);
}

function eventLine({ at, type, rank, data }) {
  const said = { state: data.state ?? data.phase, checkpoint: `step ${data.step}`, pruned: data.steps, end: data.state ?? data.outcome };
  const text = [said[type], data.message].filter((part) => part !== undefined && part !== "").join(": ");
  return [new Date(at).toLocaleTimeString(), type, rank ?? "–", text];
}

function checkpointRow(id, row) {
  const base = `/v1/jobs/${id}/checkpoints/${row.step}`;
  const files = [...row.files, { name: "manifest.json" }].map(({ name }) =>
    element("button", { type: "button", onclick: () => attempt(() => save(`${base}/files/${name}`, name)) }, name));
  const marks = [row.is_best && "best", row.is_latest && "latest"].filter(Boolean).join(", ");
  const health = element("span", { class: row.health.status }, row.health.status);
  return [row.step, number(row.metrics["val/accuracy"]), health, size(row.size_bytes), marks, element("span", {}, ...files)];
}

function layerRow(layer) {
  const parts = [layer.running_mean, layer.running_var].map((part) => (part ? `${number(part.min, 3)} … ${number(part.mean, 3)} … ${number(part.max, 3)}` : "–"));
  const findings = (layer.health ?? []).map((finding) => finding.code ?? finding).join(", ");
  return [layer.name, layer.kind, layer.num_channels, layer.num_batches_tracked, ...parts, element("span", { class: findings ? "warning" : "ok" }, findings || "ok")];
}

async function readStatistics(id, checkpoints) {
  const step = checkpoints[0]?.step;
  if (step !== undefined && seen.statistics?.step !== step)
    seen.statistics = { step, ...(await get(`/v1/jobs/${id}/checkpoints/${step}/statistics`)) };
}

async function showJob(id) {
  const [job, metrics, { data: checkpoints }] = await Promise.all([
    get(`/v1/jobs/${id}`), get(`/v1/jobs/${id}/metrics?max_points=400`), get(`/v1/jobs/${id}/checkpoints`), readEvents(id),
  ]);
  await readStatistics(id, checkpoints);
  const named = (...names) => names.map((name) => metrics.series.find((one) => one.name === name)).filter(Boolean);
  const cancel = element("button", { type: "button", onclick: () => attempt(() => call(`/v1/jobs/${id}/cancel`, { method: "POST" })) }, "Cancel");
  const title = element("div", {}, element("h1", {}, job.name), element("code", { class: "quiet" }, job.id));
  const facts = element("p", {}, stateOf(job.state), ` ${job.message || job.reason || ""} · `, progressOf(job), ` · ${job.world_size} workers · ${age(job.created_at)} old`);
  const logs = element("pre", { tabindex: 0, "aria-label": "log lines" }, seen.logs.join("\n") || "nothing yet");
  return [
    element("div", { class: "bar" }, title, TERMINAL.has(job.state) || job.state === "cancelling" ? "" : cancel), facts,
    element("div", { class: "charts" }, chart("Loss", named("train/loss", "val/loss")), chart("Accuracy", named("val/accuracy"))),
    card("States", table(["at", "state", "why"], job.transitions.map((one) => [new Date(one.at).toLocaleTimeString(), stateOf(one.state), one.message || one.reason]))),
    card("Checkpoints", checkpoints.length ? table(["step", "accuracy", "health", "size", "", "files"], checkpoints.map((row) => checkpointRow(id, row))) : "none yet"),
    seen.statistics ? card(`Running statistics at step ${seen.statistics.step} (min … mean … max)`,
      table(["layer", "kind", "channels", "batches", "running mean", "running variance", "health"], seen.statistics.layers.map(layerRow))) : "",
    card("Events", table(["at", "type", "rank", ""], seen.events.slice(-20).reverse().map(eventLine))),
    card("Log", logs),
  ];
}

// --- the page

function askForToken(reason) {
  const field = element("input", { type: "password", autocomplete: "off", "aria-label": "token", size: 50, required: true });
  const enter = (event) => { event.preventDefault(); sessionStorage.setItem("token", field.value.trim()); render(); };
  const form = element("form", { onsubmit: enter }, field, " ", element("button", {}, "Open"));
  main.replaceChildren(card("Token", element("p", {}, `${reason} It is in the file token of the controller's home.`), form));
  field.focus();
}

async function attempt(action) {
  try { await action(); await render(); } catch (error) { connection.textContent = error.message; }
}

const keyOf = (node) => node.getAttribute("href") ?? node.getAttribute("aria-label") ?? node.closest("tr")?.textContent + node.textContent;

function replace(content, isSame) {
  const log = main.querySelector("pre"), focused = document.activeElement;
  const isAtEnd = !isSame || !log || log.scrollHeight - log.scrollTop - log.clientHeight < 20, top = log?.scrollTop;
  const key = isSame && focused !== main && main.contains(focused) ? keyOf(focused) : null;
  main.replaceChildren(...content);
  const fresh = main.querySelector("pre");
  if (fresh) fresh.scrollTop = isAtEnd ? fresh.scrollHeight : top;
  if (key !== null) [...main.querySelectorAll("a, button, pre[tabindex]")].find((node) => keyOf(node) === key)?.focus({ preventScroll: true });
  shownPage = location.hash;
}

let turn = 0, timer = 0, shownPage = null;

async function render() {
  const mine = ++turn; // a slow answer must not replace the page that was opened after it
  clearTimeout(timer);
  const id = /^#\/jobs\/([A-Za-z0-9_]+)$/.exec(location.hash)?.[1];
  try {
    const content = await (id ? showJob(id) : showJobs());
    if (mine !== turn) return;
    const isSame = shownPage === location.hash;
    const isHeld = isSame && String(getSelection()) !== ""; // what is being selected must not vanish under the pointer
    if (!isHeld) replace(content, isSame);
    connection.textContent = isHeld ? "held while text is selected" : "live";
  } catch (error) {
    if (mine !== turn) return;
    if (error.status === 401) return askForToken("This service asks for its token.");
    connection.textContent = error.status ? error.message : "the service does not answer; trying again";
    if (error.status === 404 && shownPage !== location.hash) main.replaceChildren(card("Not here", error.message));
  }
  timer = setTimeout(render, document.hidden ? 10_000 : 2_000);
}

takeToken();
addEventListener("hashchange", () => { takeToken(); shownPage = null; main.focus(); render(); });
document.addEventListener("visibilitychange", () => document.hidden || render());
render();
