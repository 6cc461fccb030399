// The page's beginning: what the buttons do, and what happens between a question and its answers.
//
//     files ──Figure──> tray ──ask──> Turn ──run──> an Answer a model, streamed into its AnswerView

import { ApiError, listModels, streamChat } from "./api.js";
import { Answer, Turn, mediaFor, messagesFor } from "./conversation.js";
import { announce, byId, count, duration, el, number } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { Figure, drawExamples, showEvidence } from "./figures.js";
import { Medium, kindOf } from "./media.js";
import { openSettings, requestFields, startSettings, systemText } from "./settings.js";
import { Follower, TurnView, errorBox } from "./turns.js";
import { hideTip } from "./tokens.js";

const RIVALS = 4; // beside each token that was chosen
const ENOUGH = 64; // tokens that must have been read before a speed is told from it

const state = { models: [], tray: [], turns: [], views: [], running: null, speeds: new Map() };
const follower = new Follower();

const modelOf = (id) => state.models.find((model) => model.id === id);
const chosen = () => modelOf(byId("model").value);

/** Ids of the models that are asked: one, or two beside each other. */
function asked() {
  const second = byId("second").value;
  return second && second !== chosen().id ? [chosen().id, second] : [chosen().id];
}

async function loadModels() {
  byId("notice").replaceChildren();
  try {
    state.models = await listModels();
  } catch (error) {
    notice(error, el("button", { type: "button", on: { click: loadModels } }, "Try again"));
    return;
  }
  const before = [byId("model").value, byId("second").value];
  const options = () => state.models.map(({ id }) => el("option", { value: id }, id));
  byId("model").replaceChildren(...options());
  byId("model").disabled = false;
  byId("second").replaceChildren(el("option", { value: "" }, "none"), ...options());
  byId("beside").hidden = state.models.length < 2;
  if (modelOf(before[0])) byId("model").value = before[0];
  if (modelOf(before[1])) byId("second").value = before[1];
  modelChanged();
}

function modelChanged() {
  for (const option of byId("second").options) option.disabled = option.value === byId("model").value;
  if (byId("second").selectedOptions[0]?.disabled) byId("second").value = "";
  state.tray.forEach(countFigure);
}

/** Shows an error by the question, where it can't be missed; `extra` follows it. */
function notice(error, extra = null) {
  const close = el("button", { type: "button" }, "Close");
  const box = errorBox(error, { settings: () => openSettings("key") });
  close.addEventListener("click", () => byId("notice").replaceChildren());
  box.append(...[extra, close].filter(Boolean));
  byId("notice").replaceChildren(box);
}

function addFiles(files) {
  byId("notice").replaceChildren();
  for (const file of files) {
    if (kindOf(file)) addFigure(new Figure(new Medium(file), removeFigure));
    else notice(new Error(`${file.name} is neither a picture nor a PDF nor a video.`));
  }
  byId("question").focus();
}

function addFigure(figure) {
  state.tray.push(figure);
  byId("tray").append(figure.node);
  announce(`${figure.medium.name} added`);
  trayChanged();
  return countFigure(figure);
}

function removeFigure(figure) {
  state.tray = state.tray.filter((other) => other !== figure);
  figure.node.remove();
  figure.medium.release();
  announce(`${figure.medium.name} removed`);
  byId("question").focus();
  trayChanged();
}

async function countFigure(figure) {
  const model = chosen();
  if (!model) return;
  const fine = await figure.count(model);
  if (!fine) announce(`${figure.medium.name}: ${figure.facts.textContent}`);
  trayChanged();
}

/** What the files of the next question cost, and how long reading them takes at the speed seen so far. */
function trayChanged() {
  byId("tray").hidden = state.tray.length === 0;
  const tokens = state.tray.reduce((sum, { medium }) => sum + medium.tokens, 0);
  const { max_tokens: context = Infinity, id } = chosen() ?? {};
  const words = [];
  if (state.tray.length > 1) words.push(`Files: ${count(tokens, "visual token")}`);
  if (tokens > context) words.push(`more than the ${number(context)} that the model can read at once`);
  else if (tokens && state.speeds.has(id)) words.push(`about ${duration(tokens * state.speeds.get(id))} to read`);
  byId("cost").textContent = words.join(", ");
  byId("cost").classList.toggle("fault", tokens > context);
}

function submit(event) {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (state.running || !chosen()) return;
  if (!question) {
    announce("Write a question first");
    byId("question").focus();
    return;
  }
  byId("question").value = "";
  ask(question, state.tray.splice(0));
}

function ask(question, figures) {
  byId("notice").replaceChildren();
  byId("welcome").hidden = true;
  for (const figure of figures) figure.settle();
  const turn = new Turn(question, figures.map((figure) => figure.medium));
  const view = new TurnView(turn, figures, state.turns.length + 1);
  state.turns.push(turn);
  state.views.push(view);
  byId("turns").append(view.node);
  trayChanged();
  byId("question").focus();
  run(turn, view);
}

/** Asks the chosen models at the same time. Asking again replaces the answers. */
async function run(turn, view) {
  if (state.running) return;
  setRunning(new AbortController());
  const { signal } = state.running;
  const answers = asked().map((model) => new Answer(model));
  turn.answers = new Map(answers.map((answer) => [answer.model, answer]));
  const views = view.open(answers, actionsFor(turn, view));
  announce(`Asking ${answers.map((answer) => answer.model).join(" and ")}`);
  follower.on = true;
  follower.follow();
  await Promise.all(views.map((one) => stream(turn, one, signal)));
  if (state.running?.signal !== signal) return; // a new conversation has begun
  setRunning(null);
  const told = answers.filter((answer) => !answer.error); // errors announce themselves
  announce(told.map((answer) => `${answer.model}: ${answer.text || "nothing"}`).join("\n"));
}

async function stream(turn, view, signal) {
  const { answer } = view;
  try {
    const messages = await messagesFor(state.turns, turn, answer.model, systemText());
    const told = { stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: RIVALS };
    for await (const event of streamChat({ model: answer.model, messages, ...told, ...requestFields() }, signal)) {
      answer.add(event);
      view.add(event.text);
      follower.follow();
    }
    answer.end("done");
    noteSpeed(answer);
  } catch (error) {
    if (signal.aborted) answer.end("stopped");
    else answer.end("failed", error instanceof ApiError ? error : new ApiError(error.message));
  }
  view.end();
  follower.follow();
}

function noteSpeed({ model, usage, first, asked: begun }) {
  const fresh = usage ? usage.prompt_tokens - (usage.prompt_tokens_details?.cached_tokens ?? 0) : 0;
  if (fresh >= ENOUGH && first) state.speeds.set(model, (first - begun) / 1000 / fresh);
}

function actionsFor(turn, view) {
  const evidence = async (answer, on) => {
    const figures = state.views.flatMap((one) => one.figures);
    if (!on) return figures.forEach((figure) => figure.mark([]));
    const messages = await messagesFor(state.turns, turn, answer.model, systemText());
    const media = mediaFor(state.turns, turn, answer.model);
    try {
      announce(await showEvidence({ model: answer.model, messages, answer: answer.text }, media, figures));
    } catch (error) {
      notice(error);
    }
  };
  const able = (answer) => modelOf(answer.model)?.evidence === true;
  return { again: () => run(turn, view), settings: () => openSettings("key"), evidence, able };
}

function setRunning(controller) {
  state.running = controller;
  const stopFocused = document.activeElement === byId("stop");
  byId("send").hidden = Boolean(controller);
  byId("stop").hidden = !controller;
  byId("turns").classList.toggle("running", Boolean(controller));
  if (stopFocused) byId("question").focus();
}

function restart() {
  state.running?.abort();
  setRunning(null);
  const media = [...state.tray.map((figure) => figure.medium), ...state.turns.flatMap((turn) => turn.media)];
  media.forEach((medium) => medium.release());
  Object.assign(state, { tray: [], turns: [], views: [] });
  for (const id of ["tray", "turns", "notice"]) byId(id).replaceChildren();
  byId("welcome").hidden = false;
  byId("question").value = "";
  trayChanged();
  announce("New conversation");
  byId("question").focus();
}

/** Files come by drag and drop, from the clipboard or from the picker. */
function startFiles() {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").hidden = true; });
  addEventListener("drop", (event) => {
    byId("drop").hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    addFiles(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData ?? {};
    if (!files?.length || types.includes("text/plain") || byId("settings").open) return; // text comes with its picture
    event.preventDefault();
    addFiles(files);
  });
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", () => {
    addFiles(byId("files").files);
    byId("files").value = "";
  });
}

function start() {
  byId("composer").addEventListener("submit", submit);
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  });
  byId("stop").addEventListener("click", () => state.running?.abort());
  byId("new").addEventListener("click", restart);
  byId("model").addEventListener("change", modelChanged);
  addEventListener("scroll", hideTip, { passive: true });
  startSettings(loadModels);
  startFiles();
  drawExamples(EXAMPLES, notice, (file, question) => {
    if (state.running || !chosen()) return;
    const figure = new Figure(new Medium(file), removeFigure);
    countFigure(figure);
    ask(question, [figure]);
  });
  loadModels();
}

start();
