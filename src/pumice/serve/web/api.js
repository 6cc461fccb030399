// The server's API, which is OpenAI's. Paths are relative, so that the page works behind any prefix.
//
//     body ──streamChat──> {text, tokens, finish, usage} ... one per event

const KEY = "pumice.key";
let memory = "";

/** The API key: in this tab only, gone when it is closed. */
export const apiKey = {
  get() {
    try { return sessionStorage.getItem(KEY) ?? memory; } catch { return memory; }
  },
  set(value) {
    memory = value;
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch { /* no storage: memory holds it */ }
  },
};

/** What the server, or the way to it, said went wrong. `status` is 0 when there was no answer. */
export class ApiError extends Error {
  constructor(message, { status = 0, type = "", code = "", requestId = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, type, code, requestId, retryAfter });
  }
}

export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

/** A file of the page. */
export async function fetchBlob(path) {
  return (await call(path)).blob();
}

/** Layouts and token counts of messages, before anything is decoded. */
export async function tokenize(body, signal) {
  return (await call("tokenize", body, signal)).json();
}

/** Small pictures (data: URIs) of the pages of PDFs, in order. */
export async function fetchPreviews(body) {
  return (await (await call("v1/previews", body)).json()).pages.map(({ image }) => image);
}

/** The regions of the pictures that an answer was read from: [{media, frame, box: [x0, y0, x1, y1] in 0..1, weight}]. */
export async function findEvidence(body, signal) {
  return (await (await call("v1/evidence", body, signal)).json()).regions;
}

/** Yields what each event of a streamed answer adds. Throws an ApiError also when the stream ends early. */
export async function* streamChat(body, signal) {
  const response = await call("v1/chat/completions", body, signal);
  const requestId = response.headers.get("x-request-id") ?? "";
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const event = parse(data, requestId);
    if (event.error) throw fromBody(event, response.status, requestId, 0);
    const choice = event.choices?.[0];
    yield {
      text: choice?.delta?.content ?? "",
      tokens: choice?.logprobs?.content ?? [],
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
  throw new ApiError("The connection ended before the answer was complete.", { type: "connection", requestId });
}

function parse(data, requestId) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent an event that isn't JSON.", { type: "connection", requestId });
  }
}

async function call(path, body, signal) {
  const headers = {};
  if (apiKey.get()) headers.authorization = `Bearer ${apiKey.get()}`;
  if (body) headers["content-type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal, cache: "no-store", credentials: "omit" };
  let response;
  try {
    response = await fetch(path, { ...request, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof RangeError) throw new ApiError("The files are too large to send from a browser.");
    throw new ApiError(`The server at ${location.host} can't be reached. Is it still running?`, { type: "connection" });
  }
  if (response.ok) return response;
  const requestId = response.headers.get("x-request-id") ?? "";
  const text = await response.text();
  let parsed = {};
  try { parsed = JSON.parse(text); } catch { /* a proxy's page: its status has to do */ }
  throw fromBody(parsed, response.status, requestId, Number(response.headers.get("retry-after")) || 0);
}

function fromBody(body, status, requestId, retryAfter) {
  const error = body?.error ?? {};
  const said = typeof error === "string" ? error : error.message;
  const message = said || `The server answered with status ${status} and no explanation.`;
  return new ApiError(message, { status, type: error.type ?? "", code: error.code ?? "", requestId, retryAfter });
}

/** The `data` of server-sent events, from bytes that may break anywhere. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || signal?.aborted) throw error;
    throw new ApiError("The connection broke while the answer was coming.", { type: "connection" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
