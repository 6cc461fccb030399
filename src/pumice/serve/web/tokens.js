// How sure the model was of each token of its answer: on hover, and with the arrow keys once they are shown.
//
//     text + logprobs ──align──> [{text, probability, others}] ──spans──> elements

import { byId, el } from "./dom.js";

const LEVELS = [0.9, 0.6, 0.3];
const BROKEN = "\ufffd";
const SIGN = /^<[^<>]+>$/; // as <|im_end|>: such tokens aren't part of an answer's text
const partOf = new WeakMap();

/** Tokens that make up `text`, or null where they don't fit it. Tokens that hold parts of one character are one; where
 * a server names such a part by the sign for broken text, it is held until a later token is found in the text. */
export function align(text, tokens) {
  const encoder = new TextEncoder();
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const parts = [];
  let held = []; // tokens that haven't made a character yet
  let used = 0;
  const show = (length, made) => {
    const probability = Math.exp(made.reduce((sum, token) => sum + token.logprob, 0));
    const shown = text.slice(used, used + length);
    if (shown) parts.push({ text: shown, probability, others: made.length === 1 ? rivals(made[0]) : [] });
    used += shown.length;
    held = [];
  };
  for (const token of tokens) {
    held.push(token);
    const piece = decoder.decode(new Uint8Array(token.bytes ?? encoder.encode(token.token)), { stream: true });
    if (!piece) continue;
    const at = text.indexOf(piece, used);
    if (at === used || piece.startsWith(text.slice(used))) show(piece.length, held);
    else if (SIGN.test(piece)) held.pop();
    else if (piece.includes(BROKEN)) continue;
    else if (at > used && held.length > 1) {
      show(at - used, held.slice(0, -1));
      show(piece.length, [token]);
    } else return null;
  }
  if (held.length) show(text.length - used, held);
  return used === text.length ? parts : null;
}

function rivals(token) {
  const others = (token.top_logprobs ?? []).filter((other) => other.token !== token.token);
  return others.map((other) => ({ text: other.token, probability: Math.exp(other.logprob) }));
}

/** Spans for the aligned parts, with what they say of themselves. */
export function spans(parts) {
  return parts.map((part) => {
    const level = LEVELS.filter((bound) => part.probability < bound).length;
    const node = el("span", { class: "token", "data-level": level }, part.text);
    node.addEventListener("pointerenter", () => showTip(node, part));
    node.addEventListener("pointerleave", hideTip);
    node.addEventListener("focus", () => showTip(node, part));
    node.addEventListener("blur", hideTip);
    partOf.set(node, part);
    return node;
  });
}

/** Lets the arrow keys walk over the tokens of `box` (and shows their colours), or takes that back. */
export function setWalk(box, on) {
  const tokens = [...box.querySelectorAll(".token")];
  box.classList.toggle("shown", on);
  if (!on) {
    for (const name of ["role", "aria-label"]) box.removeAttribute(name);
    for (const token of tokens) for (const name of ["role", "tabindex", "aria-label"]) token.removeAttribute(name);
    box.onkeydown = null;
    return;
  }
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", "Tokens with their confidence; the arrow keys move between them");
  for (const [index, token] of tokens.entries()) {
    token.setAttribute("role", "option");
    token.setAttribute("tabindex", index ? "-1" : "0");
    const { text, probability } = partOf.get(token);
    token.setAttribute("aria-label", `${quoted(text)} ${percent(probability)}`);
  }
  box.onkeydown = (event) => {
    const at = tokens.indexOf(document.activeElement);
    const [next, last] = [at + 1, tokens.length - 1];
    const moves = { ArrowRight: next, ArrowDown: next, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last };
    const to = tokens[moves[event.key]];
    if (!to) return;
    event.preventDefault();
    tokens[at]?.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  };
}

function showTip(node, part) {
  const rows = [{ ...part, own: true }, ...part.others].map(({ text, probability, own }) => {
    const bar = el("progress", { max: 1, value: probability, "aria-hidden": "true" });
    const [word, share] = [el("span", {}, quoted(text)), el("span", {}, percent(probability))];
    return el("div", { class: own ? "own" : "other" }, word, bar, share);
  });
  const make = () => el("div", { id: "tip", role: "tooltip", popover: "manual" });
  const tip = byId("tip") ?? document.querySelector("main").appendChild(make());
  tip.replaceChildren(...rows);
  tip.showPopover();
  const at = node.getBoundingClientRect();
  const over = at.top - tip.offsetHeight - 6;
  tip.style.top = `${over > 0 ? over : at.bottom + 6}px`;
  tip.style.left = `${Math.max(8, Math.min(at.left, document.body.clientWidth - tip.offsetWidth - 8))}px`;
}

export function hideTip() {
  byId("tip")?.hidePopover();
}

/** A token's text, with the blanks and line ends that can't be seen otherwise. */
function quoted(text) {
  return `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;
}

function percent(probability) {
  const value = 100 * probability;
  return value > 99.95 ? "100%" : value < 0.1 ? "under 0.1%" : `${value.toFixed(1)}%`;
}
