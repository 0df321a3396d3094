// Try a checkpoint out: drop an image, and see the most probable classes by the running statistics, as for a batch of its own.

import { request } from "../api.js";
import { h } from "../dom.js";
import { card, choice, problem, quiet, table } from "../elements.js";

/** Keeps what was chosen, asked and answered; `draw` returns the card for the checkpoints that there are now. */
export function trial(id, redraw) {
  let step = null, name = "", answer = null, turn = 0;

  const ask = async (file, chosen) => {
    if (!file) return;
    const mine = ++turn;
    [name, answer] = [file.name, null];
    redraw.now();
    const path = `/v1/jobs/${id}/checkpoints/${chosen}/predict`;
    const headers = { "Content-Type": file.type || "application/octet-stream" };
    const found = await request(path, { method: "POST", body: file, headers }).then((one) => one.json(), (error) => ({ error }));
    if (mine === turn) answer = found;
    redraw.now();
  };
  const choose = (value) => {
    [step, name, answer] = [value, "", null];
    turn++; // what is being asked is about another checkpoint
    redraw.now();
  };
  return {
    draw(checkpoints) {
      const chosen = step ?? (checkpoints.some((one) => one.is_best) ? "best" : "latest");
      const names = ["best", "latest", ...checkpoints.map((one) => String(one.step))];
      const drop = (event) => { event.preventDefault(); ask(event.dataTransfer.files[0], chosen); };
      return card("Try it",
        h("div", { class: "drop", "data-key": "drop", ondragover: (event) => event.preventDefault(), ondrop: drop },
          choice("Checkpoint", names.map((one) => [one, one]), chosen, choose),
          h("label", { class: "field" }, h("span", {}, "Drop an image here, or choose one"), h("input", { type: "file", accept: "image/*", onchange: (event) => ask(event.target.files[0], chosen) }))),
        h("div", { role: "status" }, verdict(name, answer)));
    },
  };
}

function verdict(name, answer) {
  if (!name) return quiet("The image goes through the transforms of the evaluation and is classified alone. It is not stored.");
  if (!answer) return quiet(`${name}: …`);
  if (answer.error) return h("div", { class: "reason failed" }, problem(answer.error));
  const share = (probability) => [h("meter", { min: 0, max: 1, value: probability, "aria-hidden": "true" }), ` ${(100 * probability).toFixed(1)} %`];
  const rows = answer.predictions.map((one) => [String(one.label), one.name ?? "–", share(one.probability)]);
  const [first] = answer.predictions;
  return [
    h("p", {}, `${name}: class ${first.label}`, first.name && first.name !== String(first.label) ? [", ", h("strong", {}, first.name)] : null),
    table(`Classes of ${name}`, [{ name: "class", isNumber: true }, "name", { name: "probability", isNumber: true }], rows),
  ];
}
