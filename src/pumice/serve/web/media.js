// A file that was dropped, pasted or chosen: what it is, how it is sent, and what the server says of its tokens.

import { fetchPreviews, tokenize } from "./api.js";

const EXTENSIONS = {
  picture: ["png", "jpg", "jpeg", "webp", "gif", "tif", "tiff", "bmp"],
  pdf: ["pdf"],
  video: ["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ogv"],
};

/** "picture", "pdf", "video", or null for a file of another kind. */
export function kindOf(file) {
  if (file.type === "application/pdf") return "pdf";
  if (file.type.startsWith("video/")) return "video";
  if (file.type.startsWith("image/")) return "picture";
  const extension = file.name.split(".").pop().toLowerCase();
  return Object.keys(EXTENSIONS).find((kind) => EXTENSIONS[kind].includes(extension)) ?? null;
}

export class Medium {
  /** `layouts` are filled in by `count`: one for a picture or video, one a page for a PDF. */
  constructor(file) {
    this.file = file;
    this.name = file.name || "pasted picture";
    this.kind = kindOf(file);
    this.url = URL.createObjectURL(file);
    this.layouts = [];
    this.counts = new Map();
    this.pages = null;
  }

  /** The part of a message that holds this file. */
  async part() {
    this.data ??= readData(this.file, this.kind);
    const url = await this.data;
    if (this.kind === "pdf") return { type: "file", file: { filename: this.name, file_data: url } };
    if (this.kind === "video") return { type: "video_url", video_url: { url } };
    return { type: "image_url", image_url: { url } };
  }

  /** Asks the server, once a model, how the file becomes tokens. */
  count(model) {
    if (!this.counts.has(model)) {
      const asked = this.part()
        .then((part) => tokenize({ model, messages: [{ role: "user", content: [part] }] }))
        .then((answer) => answer.media.map(({ tiles, ...layout }) => ({ ...layout, ...tiles })));
      asked.catch(() => this.counts.delete(model));
      this.counts.set(model, asked);
    }
    return this.counts.get(model);
  }

  /** Asks the server, once, for small pictures of a PDF's pages, which browsers can't draw. */
  previews() {
    if (!this.pages) {
      this.pages = this.part().then((part) => fetchPreviews({ messages: [{ role: "user", content: [part] }] }));
      this.pages.catch(() => { this.pages = null; });
    }
    return this.pages;
  }

  get tokens() {
    return this.layouts.reduce((sum, layout) => sum + layout.tokens, 0);
  }

  release() {
    URL.revokeObjectURL(this.url);
  }
}

/** A data: URI. Some systems leave a file's type empty or say octet-stream: the kind then stands in. */
function readData(file, kind) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => {
      const fallback = { pdf: "application/pdf", video: "video/mp4", picture: "image/png" }[kind];
      resolve(reader.result.replace(/^data:(application\/octet-stream)?(?=[;,])/, `data:${fallback}`));
    };
    reader.onerror = () => reject(new Error(`${file.name} can't be read: ${reader.error.message}`));
    reader.readAsDataURL(file);
  });
}

/** Pictures (data: URIs) of a video at `times` in seconds; yields [index, picture]. Ends at a codec that the browser
 * doesn't know. */
export async function* frames(url, times, side) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, preload: "auto", src: url });
  if (!(await happens(video, "loadeddata"))) return;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  for (const [index, time] of times.entries()) {
    video.currentTime = Math.min(time, Math.max(0, video.duration - 0.05));
    if (!(await happens(video, "seeked"))) return;
    canvas.getContext("2d").drawImage(video, 0, 0, side, side);
    yield [index, canvas.toDataURL("image/jpeg", 0.7)];
  }
  video.removeAttribute("src");
}

function happens(video, event) {
  return new Promise((resolve) => {
    video.addEventListener(event, () => resolve(true), { once: true });
    video.addEventListener("error", () => resolve(false), { once: true });
    setTimeout(() => resolve(false), 5000);
  });
}
