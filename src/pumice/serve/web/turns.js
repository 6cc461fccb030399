// A question and its answers in the document. What a model says is text and never becomes markup.

import { announce, byId, copyText, count, duration, el } from "./dom.js";
import { align, setWalk, spans } from "./tokens.js";

/** The article of one Turn: its files, the question, one column an answer. */
export class TurnView {
  constructor(turn, figures, position) {
    this.turn = turn;
    this.figures = figures;
    this.media = el("div", { class: "media" }, ...figures.map((figure) => figure.node));
    this.answers = el("div", { class: "answers" });
    const title = el("h2", { id: `turn-${position}` }, turn.question);
    this.node = el("article", { "aria-labelledby": title.id }, this.media, title, this.answers);
  }

  /** Empty places for answers, all at once, so that nothing moves when they come. */
  open(answers, actions) {
    const views = answers.map((answer) => new AnswerView(answer, actions));
    this.answers.replaceChildren(...views.map((view) => view.node));
    return views;
  }
}

/** One answer. `actions` are {again, settings, evidence(answer, on), able(answer): whether there is evidence}. */
export class AnswerView {
  constructor(answer, actions) {
    this.answer = answer;
    this.actions = actions;
    this.text = el("div", { class: "text" }, el("span", { class: "waiting" }, "reading …"));
    this.bar = el("div", { class: "actions" });
    this.node = el("div", { class: "answer", "aria-busy": "true" }, el("h3", {}, answer.model), this.text, this.bar);
  }

  add(text) {
    if (!text) return;
    if (this.answer.state === "waiting") {
      this.text.replaceChildren();
      this.answer.state = "streaming";
    }
    this.text.append(text);
  }

  /** Shows what the answer came to, once it has ended in any way. */
  end() {
    const { answer } = this;
    this.node.setAttribute("aria-busy", "false");
    this.node.dataset.state = answer.state;
    const parts = align(answer.text, answer.tokens);
    this.text.replaceChildren(...(parts ? spans(parts) : [answer.text]));
    if (answer.state === "failed") this.node.insertBefore(errorBox(answer.error, this.actions), this.bar);
    else if (!answer.text) this.text.replaceChildren(el("span", { class: "waiting" }, "(nothing)"));
    this.bar.replaceChildren(...this.buttons(parts), el("span", { class: "facts" }, this.facts()));
  }

  buttons(parts) {
    const { answer, actions } = this;
    const again = button("Again", () => actions.again());
    again.classList.add("again");
    const copy = button("Copy", async () => {
      const done = await copyText(answer.text);
      copy.textContent = done ? "Copied" : "Not copied";
      announce(done ? "Copied" : "The browser didn't allow copying");
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
    copy.classList.add("copy");
    return [
      answer.text ? copy : null,
      parts?.length ? toggle("Confidence", (on) => setWalk(this.text, on)) : null,
      answer.text && actions.able(answer) ? this.evidence() : null,
      again,
    ].filter(Boolean);
  }

  /** Marks show one answer's evidence at a time: the other answers' buttons spring back. */
  evidence() {
    const node = toggle("Evidence", (on) => {
      const others = byId("turns").querySelectorAll(".show-evidence");
      for (const other of others) if (other !== node) other.setAttribute("aria-pressed", "false");
      this.actions.evidence(this.answer, on);
    });
    node.classList.add("show-evidence");
    return node;
  }

  facts() {
    const { finish, usage, state, asked, first, ended } = this.answer;
    const words = [];
    if (state === "stopped") words.push("stopped");
    if (finish === "length") words.push("cut off at the longest answer that the settings allow");
    if (usage) {
      const { cached_tokens: cached = 0, visual_tokens: visual = 0 } = usage.prompt_tokens_details ?? {};
      const known = cached ? `, ${count(cached, "token")} known from before` : "";
      words.push(`${count(usage.prompt_tokens, "token")} read (${count(visual, "visual one")}${known})`);
      words.push(`${count(usage.completion_tokens, "token")} written`);
    }
    const after = (time) => duration((time - asked) / 1000);
    if (first) words.push(`first after ${after(first)}, all after ${after(ended)}`);
    return words.join(" · ");
  }
}

const TITLES = {
  invalid_api_key: "The server wants an API key",
  context_length_exceeded: "More than the model can read at once",
  media_unreadable: "A file that can't be read",
  media_too_large: "A file that is too large",
  body_too_large: "More than the server takes in one request",
  rate_limit_exceeded: "Too many requests with this key",
  too_many_concurrent: "Too many requests at once with this key",
  queue_full: "The server's queue is full",
  deadline_exceeded: "The answer took longer than the server allows",
  draining: "The server is shutting down",
  loading: "The model is still being loaded",
  connection: "No connection",
};

/** An error as what it is: a title from its code, the server's own words, what can be done. */
export function errorBox(error, actions) {
  const plain = error.status ? `Refused with status ${error.status}` : "It didn't work";
  const title = TITLES[error.code] ?? TITLES[error.type] ?? plain;
  const box = el("div", { class: "error", role: "alert" }, el("b", {}, title), el("p", {}, error.message));
  if (error.retryAfter) box.append(el("p", {}, `Try again in ${count(error.retryAfter, "second")}.`));
  if (error.requestId) box.append(el("p", { class: "facts" }, `Request ${error.requestId}`));
  if (error.status === 401) box.append(button("Enter a key", actions.settings));
  return box;
}

function button(text, action) {
  return el("button", { type: "button", on: { click: action } }, text);
}

function toggle(text, action) {
  const node = button(text, () => {
    const on = node.getAttribute("aria-pressed") !== "true";
    node.setAttribute("aria-pressed", String(on));
    action(on);
  });
  node.setAttribute("aria-pressed", "false");
  return node;
}

/** Keeps the newest line in sight while answers come, unless the reader has scrolled away. */
export class Follower {
  constructor() {
    this.on = true;
    const page = document.documentElement;
    const slack = 60;
    const look = () => { this.on = page.scrollHeight - innerHeight - scrollY < slack; };
    addEventListener("scroll", look, { passive: true });
  }

  follow() {
    if (!this.on) return;
    const last = byId("turns").lastElementChild;
    const room = innerHeight - byId("composer").offsetHeight;
    if (last && last.getBoundingClientRect().bottom > room) scrollTo({ top: document.documentElement.scrollHeight });
  }
}
