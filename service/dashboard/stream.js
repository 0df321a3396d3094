// Live streams: server-sent events over fetch, because an EventSource cannot send the token. Resumed after the last event that was read.

import { Problem, request } from "./api.js";

const SILENCE_MS = 45_000; // three heartbeats
const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 30_000;
const FINAL = new Set([400, 401, 403, 404, 422]);

/**
 * Follow a stream to its end, over every break. A hidden page lets go: a browser has six connections for all pages of a service.
 * @param path with its query
 * @param after the number of the last event that is known already
 * @param onEvent is given each event once: {type, ...data}
 * @param onState is told `live`, `reconnecting`, `ended` or `refused`
 * @returns a function that stops it
 */
export function follow(path, after, onEvent, onState = () => {}) {
  let last = after, isStopped = false, controller = new AbortController();
  const wake = () => controller.abort();
  document.addEventListener("visibilitychange", wake);

  async function connect() {
    controller = new AbortController();
    if (document.hidden) return untilVisible();
    const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": String(last) } : {}) };
    const response = await request(path, { headers, signal: controller.signal });
    if (response.status === 204) return "ended";
    onState("live");
    return read(response, controller, (event) => {
      last = event.id || last;
      onEvent(event);
    });
  }

  async function run() {
    for (let wait = FIRST_WAIT_MS; !isStopped; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
      const before = last;
      try {
        if ((await connect()) === "ended") return onState("ended");
      } catch (error) {
        if (isStopped) return;
        if (error instanceof Problem && FINAL.has(error.status)) return onState("refused");
      }
      if (last !== before) wait = FIRST_WAIT_MS;
      if (isStopped) return;
      if (!document.hidden) onState("reconnecting");
      await new Promise((resolve) => setTimeout(resolve, wait * (0.5 + Math.random())));
    }
  }

  run();
  return () => {
    isStopped = true;
    document.removeEventListener("visibilitychange", wake);
    controller.abort();
  };
}

const untilVisible = () => new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));

async function read(response, controller, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => controller.abort(), SILENCE_MS);
    const { done, value } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return "broken";
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const event of blocks.map(parse).filter(Boolean)) {
      onEvent(event);
      if (event.type === "end") return "ended";
    }
  }
}

/** Read one block of a stream; null where it is only a comment. */
export function parse(block) {
  const fields = { data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name === "data") fields.data.push(value);
    else if (name) fields[name] = value;
  }
  if (!fields.data.length) return null;
  return { ...JSON.parse(fields.data.join("\n")), type: fields.event, id: Number(fields.id ?? 0) };
}
