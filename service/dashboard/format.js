// Numbers, sizes and times as words. Pure.

export const number = (value, digits = 4) => (typeof value === "number" && Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "–");

export const count = (value) => (typeof value === "number" ? value.toLocaleString("en") : "–");

export const percent = (value) => (typeof value === "number" ? `${(100 * value).toFixed(2)} %` : "–");

export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; bytes >= 1024 && at < units.length - 1; at++) bytes /= 1024;
  return `${number(bytes, 3)} ${units[at]}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1e-3) return `${number(seconds * 1e6, 3)} µs`;
  if (seconds < 1) return `${number(seconds * 1e3, 3)} ms`;
  if (seconds < 60) return `${number(seconds, 3)} s`;
  const minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min ${Math.floor(seconds % 60)} s`;
}

const secondsBetween = (from, to) => Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000);

export const between = (from, to) => duration(secondsBetween(from, to ?? new Date().toISOString()));

export function ago(time) {
  const seconds = secondsBetween(time, new Date().toISOString());
  const [length, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([one]) => seconds >= one) ?? [1, "s"];
  return `${Math.floor(seconds / length)} ${unit}`;
}

export const clock = (time) => new Date(time).toLocaleString("sv-SE") /* 2026-01-31 12:34:56 */;

/** How long a running job still takes, in seconds, if it goes on as it went; null where that cannot be said. */
export function remaining(job) {
  const { step, total_steps: total } = job.progress;
  if (!total || !step || step >= total || job.state !== "running" || !job.started_at) return null;
  return (secondsBetween(job.started_at, new Date().toISOString()) * (total - step)) / step;
}

const PLAIN = /^(?!(?:true|false|null|yes|no|on|off|y|n|nan|inf)$)[a-z_][\w./-]*$/i;

/** A spec as YAML that every YAML parser reads as the same: 1e-7 has a point, what could be another type has quotes. */
export function yaml(value, indent = "") {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "number") return String(value).replace(/^(-?\d+)e/, "$1.0e");
  if (typeof value === "string") return PLAIN.test(value) ? value : JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((one) => yaml(one)).join(", ")}]`;
  const entries = Object.entries(value).filter(([, inner]) => inner !== undefined);
  if (!entries.length) return "{}";
  const lines = entries.map(([key, inner]) => {
    const isBlock = inner !== null && typeof inner === "object" && !Array.isArray(inner) && Object.keys(inner).length;
    return `${indent}${yaml(key)}:${isBlock ? "\n" : " "}${yaml(inner, `${indent}  `)}`;
  });
  return lines.join("\n");
}

/** The values of a spec as JSON, by dotted path. */
export function flattened(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [path]: JSON.stringify(value) };
  return Object.assign({}, ...Object.entries(value).map(([key, inner]) => flattened(inner, path ? `${path}.${key}` : key)));
}

/** A text in small letters, as long as it was; letter by letter as the service compares them (service/needle.py). */
export const folded = (text) => text.replaceAll("\u0130", "\ufffe").replaceAll("\u212a", "\uffff").replaceAll("\u03a3", "\u03c3").toLowerCase();

/** What a terminal would show: without colours and other escapes, and without what cannot be seen. */
export const plain = (text) => text.replace(/\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)/g, "").replace(/[\x00-\x08\x0b-\x1f\x7f]/g, "\ufffd");
