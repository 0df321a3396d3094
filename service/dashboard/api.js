// The public API: requests with the token, errors as they were said, and which routes this service has.

const HELD = "syncbn.token";
let known = new Set();
export let reference = null;

/** What the service said is wrong (RFC 9457). */
export class Problem extends Error {
  constructor(status, said) {
    super(said.detail ?? `the service answered ${status}`);
    Object.assign(this, { status, code: said.code ?? "", title: said.title ?? "Error", errors: said.errors ?? [] });
  }
}

// The token is kept for this tab, or by the user's wish for this browser. It is never a cookie: no other page's request carries it.
export const token = {
  get: () => sessionStorage.getItem(HELD) ?? localStorage.getItem(HELD) ?? "",
  keep(value, isForBrowser = false) {
    token.forget();
    (isForBrowser ? localStorage : sessionStorage).setItem(HELD, value);
  },
  forget() {
    sessionStorage.removeItem(HELD);
    localStorage.removeItem(HELD);
  },
  /** Take the token out of the address that `syncbn serve` prints, and the address out of the history. */
  takeFromAddress() {
    const given = /^#token=(.+)$/.exec(location.hash);
    if (!given) return;
    token.keep(decodeURIComponent(given[1]));
    history.replaceState(null, "", "/#/jobs");
  },
};

export async function request(path, { headers = {}, json, ...options } = {}) {
  const body = json === undefined ? options.body : JSON.stringify(json);
  const type = json === undefined ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, { ...options, body, headers: { Authorization: `Bearer ${token.get()}`, ...type, ...headers } });
  if (response.ok) return response;
  throw new Problem(response.status, await response.json().catch(() => ({})));
}

export const get = async (path) => (await request(path)).json();

export const send = (method, path, json) => request(path, { method, json });

/** Read what this service can do: what it cannot is not offered. */
export async function learn() {
  if (reference) return;
  const document = await (await fetch("/openapi.json")).json();
  known = new Set(Object.entries(document.paths).flatMap(([path, operations]) => Object.keys(operations).map((method) => `${method.toUpperCase()} ${path}`)));
  reference = document;
}

export const can = (method, path) => known.has(`${method} ${path}`);

/** The types of event that this service knows. */
export const eventTypes = () => reference.components.schemas.EventType.enum;

/** Download a file, check that it is what its digest says, and only then hand it to the user. */
export async function download(path, name, sha256, onProgress = () => {}) {
  const response = await request(path);
  const total = Number(response.headers.get("content-length")), parts = [];
  let read = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onProgress((read += value.length), total);
  }
  const blob = new Blob(parts);
  if (total && read !== total) throw new Error(`${name} broke off after ${read} of ${total} bytes; download it again`);
  // Browsers have digests on https and on this machine only; elsewhere the length must do.
  if (sha256 && crypto.subtle && (await digest(blob)) !== sha256) throw new Error(`${name} is not what its SHA-256 says; download it again`);
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function digest(blob) {
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A key that makes a submission sent twice one job. */
export const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
