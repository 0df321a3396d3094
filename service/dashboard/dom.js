// Elements: made by `h`, brought up to date by `render`. What is put in becomes text nodes and attributes, never markup.

// An attribute that the user changes is the user's: an opened section stays open, a typed value stays typed.
const OF_THE_USER = new Set(["open"]);

/** Make an element. Attributes that begin with `on` are handlers; null, undefined and false leave one out; true is the empty one. */
export function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) handle(node, key, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...flat(children));
  return node;
}

/** Make what is in `parent` equal to `content`, changing as little as possible: focus, selection and scrolling stay. */
export function render(parent, ...content) {
  bringChildren(parent, flat(content));
}

function flat(children) {
  const nodes = [];
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    const node = child instanceof Node ? child : document.createTextNode(String(child));
    // Neighbouring texts are one, as they are where they are compared with.
    if (node.nodeType === Node.TEXT_NODE && nodes.at(-1)?.nodeType === Node.TEXT_NODE) nodes.at(-1).data += node.data;
    else nodes.push(node);
  }
  return nodes;
}

function handle(node, key, handler) {
  node[key] = handler;
  node.handlers = { ...node.handlers, [key]: handler };
}

function bringChildren(parent, fresh) {
  const keyed = new Map([...parent.children].filter(keyOf).map((child) => [keyOf(child), child]));
  let at = parent.firstChild;
  for (const node of fresh) {
    const match = keyOf(node) ? keyed.get(keyOf(node)) : at && !keyOf(at) ? at : null;
    if (!match || match.nodeName !== node.nodeName) {
      parent.insertBefore(node, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else parent.insertBefore(match, at);
    bring(match, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function bring(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const key of Object.keys(old.handlers ?? {})) if (!fresh.handlers?.[key]) old[key] = null;
  for (const [key, handler] of Object.entries(fresh.handlers ?? {})) old[key] = handler;
  old.handlers = fresh.handlers;
  if (old.hasAttribute("data-keep")) return; // a chart, a log: whoever draws it owns what is inside
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name) && !OF_THE_USER.has(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) === value || OF_THE_USER.has(name)) continue;
    // The policy admits no style attribute that is set as text; the same through the object model it does.
    if (name === "style") old.style.cssText = value;
    else old.setAttribute(name, value);
    if (name === "value" && old !== document.activeElement) old.value = value;
  }
  if (old.nodeName !== "TEXTAREA") bringChildren(old, [...fresh.childNodes]);
}

const keyOf = (node) => node.dataset?.key;
