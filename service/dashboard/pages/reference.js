// The reference of the API, from the service's own description of itself.

import { reference } from "../api.js";
import { h } from "../dom.js";
import { card, code, quiet, table } from "../elements.js";

export const open = () => ({ title: "API", period_s: 3600, refresh: () => [h("h1", {}, "API"), quiet("The whole description, for tools: ", h("a", { href: "/openapi.json" }, "/openapi.json"), ". Every request needs ", code("Authorization: Bearer TOKEN"), "."), routes(), shapes()] });

function routes() {
  const entries = Object.entries(reference.paths).flatMap(([path, operations]) => Object.entries(operations).map(([method, operation]) => ({ path, method: method.toUpperCase(), ...operation })));
  const tags = [...new Set(entries.map((one) => one.tags?.[0] ?? "other"))];
  return tags.map((tag) => card(tag, entries.filter((one) => (one.tags?.[0] ?? "other") === tag).map(route)));
}

function route({ method, path, description, summary, parameters = [], requestBody, responses }) {
  const rows = parameters.map((one) => [code(one.name), one.in, typeName(one.schema), h("span", { class: "why long" }, one.description ?? "")]);
  const body = Object.entries(requestBody?.content ?? {}).map(([type, one]) => `${type}: ${typeName(one.schema)}`);
  const answers = Object.entries(responses).map(([status, one]) => h("li", {}, code(status), ` ${one.description} `, Object.entries(one.content ?? {}).map(([type, inner]) => h("span", { class: "quiet" }, `${type} ${typeName(inner.schema)}`))));
  return h("details", { "data-key": `${method} ${path}` }, h("summary", {}, h("span", { class: "method" }, method), " ", code(path), " ", h("span", { class: "quiet" }, (description ?? summary ?? "").split("\n")[0])),
    rows.length ? table(`Parameters of ${method} ${path}`, ["name", "in", "type", "meaning"], rows) : null, body.length ? h("p", {}, "Body: ", body.join(", ")) : null, h("ul", {}, answers));
}

function shapes() {
  return card("Shapes", Object.entries(reference.components.schemas).sort().map(([name, schema]) => {
    const rows = Object.entries(schema.properties ?? {}).map(([key, one]) => [code(key), typeName(one), (schema.required ?? []).includes(key) ? "required" : one.default !== undefined ? code(JSON.stringify(one.default)) : "", h("span", { class: "why long" }, one.description ?? "")]);
    return h("details", { "data-key": name }, h("summary", {}, code(name), " ", h("span", { class: "quiet" }, (schema.description ?? "").split("\n")[0])), rows.length ? table(`Fields of ${name}`, ["field", "type", "default", "meaning"], rows) : code(typeName(schema)));
  }));
}

/** A JSON schema in few words. */
function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  const some = schema.anyOf ?? schema.oneOf;
  if (some) return some.map(typeName).join(" | ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeName(schema.items) || "anything"}`;
  return schema.type ?? "anything";
}
