// A job's checkpoints: what they reached, whether they are sound, their digests; download, pin, delete, try out, make other jobs of one.

import { can, download, get, send } from "../api.js";
import { h } from "../dom.js";
import { ask, button, card, code, quiet, table } from "../elements.js";
import { ago, count, number, size } from "../format.js";
import { trial } from "./trial.js";

const ONE = "/v1/jobs/{job_id}/checkpoints/{step}";
const FORMATS = ["plain", "folded", "onnx"];
const IN_MEMORY = 512 * 1024 ** 2; // larger ones are for the CLI, which resumes and checks as it writes

export function open(id, query, redraw) {
  let running = "";
  const base = `/v1/jobs/${id}/checkpoints`;
  const act = (method, path) => () => send(method, base + path).then(redraw.now, redraw.say);
  const save = (step, file) => () =>
    download(`${base}/${step}/files/${file.name}`, file.name, file.sha256, (read, total) => {
      running = total ? `${file.name}: ${Math.floor((100 * read) / total)} %` : "";
    }).then(() => { running = `${file.name}: saved, SHA-256 checked`; redraw.now(); }, redraw.say);
  const tried = trial(id, redraw);
  const derive = (step, what, ask) => () =>
    send("POST", `${base}/${step}/${what}`, ask).then(async (made) => { location.hash = `#/jobs/${(await made.json()).id}`; }).catch(redraw.say);
  const remove = async (step) => (await ask(`Delete checkpoint ${step}?`, "Delete it")) && act("DELETE", `/${step}`)();
  return {
    refresh: async (job) => {
      const { data, has_more: hasMore } = await get(`${base}?limit=100`);
      if (!data.length) return card("Checkpoints", quiet("None yet."));
      return [
        card("Checkpoints", h("p", { role: "status", class: "quiet" }, running), data.map((one) => entry(id, one, { act, save, remove, derive })), hasMore ? quiet("Only the newest hundred are shown.") : null),
        can("POST", `${ONE}/predict`) && job.spec.task.name === "classification" ? tried.draw(data) : null,
        card("From a shell", quiet("Resumed when the line breaks, checked against the digests, whole or not there:"), h("pre", {}, `syncbn checkpoints download ${id} best`)),
      ];
    },
  };
}

function entry(id, one, { act, save, remove, derive }) {
  const marks = [one.is_best && "best", one.is_latest && "latest", one.pinned && "pinned", one.damaged.length > 0 && "damaged"].filter(Boolean);
  const isPlain = one.pinned === false;
  const files = [...one.files, { name: "manifest.json", size: null, sha256: null }].map((file) => [
    file.name, file.size === null ? "–" : size(file.size), file.sha256 ? h("code", { title: file.sha256 }, file.sha256.slice(0, 16), "…") : "–",
    file.size > IN_MEMORY ? "from a shell" : button("Download", save(one.step, file), { "aria-label": `Download ${file.name} of step ${one.step}` }),
  ]);
  return h("article", { class: "entry", "data-key": `step-${one.step}` },
    h("div", { class: "row apart" },
      h("h3", {}, `Step ${count(one.step)} `, marks.map((mark) => h("span", { class: "mark" }, mark)), " ", health(one.health)),
      h("div", { class: "row" },
        can("PUT", `${ONE}/pin`) ? button(isPlain ? "Pin" : "Unpin", act(isPlain ? "PUT" : "DELETE", `/${one.step}/pin`)) : null,
        h("a", { class: "button", href: `#/submit?from=${id}&checkpoint=${one.step}` }, "Fork from here"),
        h("a", { class: "button", href: `#/jobs/${id}/statistics?step=${one.step}` }, "Statistics"),
        can("POST", `${ONE}/recalibrate`) ? button("Recalibrate", derive(one.step, "recalibrate", {}), { title: "A job that estimates the running statistics anew over training data" }) : null,
        can("DELETE", ONE) && isPlain ? button("Delete", () => remove(one.step)) : null)),
    h("p", { class: "facts-line" }, Object.entries(one.metrics).map(([name, value]) => h("span", {}, `${name} ${number(value)}`)), h("span", {}, `epoch ${number(one.epoch, 3)}`), h("span", {}, size(one.size_bytes)), h("span", {}, `${ago(one.created_at)} ago`)),
    one.health.findings.length ? h("ul", {}, one.health.findings.map((finding) => h("li", {}, code(finding.layer), ` ${finding.message}`))) : null,
    h("details", { "data-key": "files" }, h("summary", {}, `${files.length} files`), table(`Files of step ${one.step}`, ["file", "size", "SHA-256", { name: "", label: "download" }], files)),
    can("POST", `${ONE}/export`) ? h("details", { "data-key": "export" }, h("summary", {}, "Export"), h("div", { class: "row" }, FORMATS.map((format) => button(format, derive(one.step, "export", { formats: [format] }), { "aria-label": `Export step ${one.step} as ${format}` })))) : null);
}

const health = ({ status }) => h("span", { class: status === "healthy" ? "mark good" : "mark bad" }, status === "healthy" ? "✓ healthy" : `⚠ ${status}`);
