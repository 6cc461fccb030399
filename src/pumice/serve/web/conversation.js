// What was asked and answered, and the messages that tell a model of it. No document here.

/** One model's answer, as far as it has come. `tokens` are OpenAI's logprobs entries. */
export class Answer {
  constructor(model) {
    Object.assign(this, { model, text: "", tokens: [], state: "waiting", finish: null, usage: null, error: null });
    Object.assign(this, { asked: performance.now(), first: 0, ended: 0 });
  }

  add(event) {
    if (!this.first && (event.text || event.tokens.length)) this.first = performance.now();
    this.text += event.text;
    this.tokens.push(...event.tokens);
    this.finish = event.finish ?? this.finish;
    this.usage = event.usage ?? this.usage;
  }

  end(state, error = null) {
    Object.assign(this, { state, error, ended: performance.now() });
  }
}

export class Turn {
  /** `answers` maps a model's id to its Answer. */
  constructor(question, media) {
    this.question = question;
    this.media = media;
    this.answers = new Map();
  }

  /** What `model` is told that it said: its own answer, or else another model's. */
  textFor(model) {
    const all = [this.answers.get(model), ...this.answers.values()];
    return all.find((answer) => answer?.text)?.text ?? "";
  }
}

/** Messages up to and with `turn`. Earlier questions that nothing was answered to are left out. */
export async function messagesFor(turns, turn, model, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  const before = turns.slice(0, turns.indexOf(turn)).filter((one) => one.textFor(model));
  for (const one of before) {
    messages.push(await question(one), { role: "assistant", content: one.textFor(model) });
  }
  messages.push(await question(turn));
  return messages;
}

async function question(turn) {
  const media = await Promise.all(turn.media.map((medium) => medium.part()));
  return { role: "user", content: [...media, { type: "text", text: turn.question }] };
}

/** Media that `messagesFor` sends, a page of a PDF counted as one: [[medium, page], ...]. */
export function mediaFor(turns, turn, model) {
  const sent = [...turns.slice(0, turns.indexOf(turn)).filter((one) => one.textFor(model)), turn];
  return sent.flatMap((one) => one.media).flatMap((medium) => medium.layouts.map((_, page) => [medium, page]));
}
