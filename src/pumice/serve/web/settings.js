// The settings dialog: how answers are asked for, and the API key.

import { apiKey } from "./api.js";
import { byId } from "./dom.js";

const KEY = "pumice.settings";
const DEFAULTS = { system: "", temperature: "0", "max-tokens": "256", seed: "", "stop-texts": "", schema: "" };
const MOST_STOPS = 4;

let values = { ...DEFAULTS };
try {
  values = { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };
} catch { /* no storage, or something else's */ }

export const systemText = () => values.system.trim();

/** The fields of a request that the settings stand for. */
export function requestFields() {
  const fields = { temperature: Number(values.temperature), max_tokens: Number(values["max-tokens"]) };
  const stop = stops(values["stop-texts"]);
  if (values.seed !== "") fields.seed = Number(values.seed);
  if (stop.length) fields.stop = stop;
  if (values.schema.trim()) {
    const schema = JSON.parse(values.schema);
    fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  return fields;
}

const SIGNS = { n: "\n", t: "\t", "\\": "\\" };
const stops = (text) =>
  text.split("\n").filter((line) => line !== "").map((line) => line.replace(/\\([nt\\])/g, (_, sign) => SIGNS[sign]));

/** What is wrong with a field, or nothing. */
const CHECKS = {
  temperature: (text) => (text.trim() === "" || !(text >= 0 && text <= 2) ? "A number from 0 to 2" : ""),
  "max-tokens": (text) => (/^[1-9]\d{0,8}$/.test(text) ? "" : "A whole number of at least 1"),
  seed: (text) => (/^\d{0,15}$/.test(text) ? "" : "A whole number of at least 0, or nothing"),
  "stop-texts": (text) => (stops(text).length > MOST_STOPS ? `At most ${MOST_STOPS} lines` : ""),
  schema: (text) => (text.trim() ? schemaFault(text) : ""),
};

function schemaFault(text) {
  try {
    const schema = JSON.parse(text);
    const fine = typeof schema === "object" && schema !== null && !Array.isArray(schema);
    return fine ? "" : "Expected an object: {…}";
  } catch (error) {
    return `Not JSON: ${error.message}`;
  }
}

/** Shows what is wrong with a field in the place of its help. */
function show(name, fault) {
  const field = byId(name);
  const help = byId(field.getAttribute("aria-describedby"));
  help.dataset.help ??= help.textContent;
  help.textContent = fault || help.dataset.help;
  help.classList.toggle("fault", Boolean(fault));
  field.setAttribute("aria-invalid", String(Boolean(fault)));
}

function fill(shown) {
  for (const [name, value] of Object.entries(shown)) byId(name).value = value;
  for (const name of Object.keys(CHECKS)) show(name, "");
}

/** Opens the dialog; `focus` is the id of the field to begin with. */
export function openSettings(focus = "system") {
  fill(values);
  byId("key").value = apiKey.get();
  byId("settings").showModal();
  byId(focus).focus();
}

/** Wires the dialog. `changed` is called after Done; Escape leaves everything as it was. */
export function startSettings(changed) {
  const dialog = byId("settings");
  byId("settings-open").addEventListener("click", () => openSettings());
  byId("settings-reset").addEventListener("click", () => fill(DEFAULTS));
  dialog.querySelector("form").addEventListener("submit", (event) => {
    const wrong = Object.entries(CHECKS).map(([name, check]) => {
      const field = byId(name);
      const fault = field.validity.badInput ? "Not a number" : check(field.value);
      show(name, fault);
      return fault && field;
    });
    const first = wrong.find(Boolean);
    if (first) {
      event.preventDefault();
      first.focus();
      return;
    }
    for (const name of Object.keys(DEFAULTS)) values[name] = byId(name).value;
    try { localStorage.setItem(KEY, JSON.stringify(values)); } catch { /* then they last until the page is left */ }
    apiKey.set(byId("key").value.trim());
    changed();
  });
}
