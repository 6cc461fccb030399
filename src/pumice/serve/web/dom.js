// Elements without a framework. Text becomes text nodes: nothing in this page writes markup from a string.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `on` holds listeners, `class` and other keys are attributes; false and null leave one out. */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, { on = {}, ...attributes }, children) {
  for (const [name, listener] of Object.entries(on)) node.addEventListener(name, listener);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** 1312 -> "1,312" */
export const number = (value) => value.toLocaleString("en");

/** "1 token", "2 tokens" */
export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

/** Seconds as people say them: "0.42 s", "12 s", "3 min". */
export function duration(seconds) {
  if (seconds >= 100) return `${Math.round(seconds / 60)}\u00a0min`;
  return `${seconds.toFixed(seconds >= 10 ? 0 : seconds >= 1 ? 1 : 2)}\u00a0s`;
}

/** Says something to screen readers, without moving anything. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Puts text on the clipboard; the clipboard's own interface is missing on pages without https. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* refused: the older way may still be allowed */ }
  }
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
  const before = document.activeElement;
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  before?.focus();
  return copied;
}
