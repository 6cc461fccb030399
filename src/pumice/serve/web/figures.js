// A file as it is shown: the picture or video, beside it what the model gets, below both the count of tokens.

import { fetchBlob, findEvidence } from "./api.js";
import { byId, count, el, svg } from "./dom.js";
import { frames } from "./media.js";
import { cost, describe, drawFrames, drawSheets, drawTiles, markView } from "./tiling.js";

const NAMES = { picture: "picture", pdf: "PDF", video: "video" };
const PAGES_SHOWN = 4; // in the tray; the conversation has them all

/** The figure of a Medium. It moves from the tray into the conversation as it is, so nothing is drawn twice. */
export class Figure {
  constructor(medium, remove) {
    this.medium = medium;
    this.original = el("div", { class: "view" }, preview(medium));
    this.tiles = el("div", { class: medium.kind === "pdf" ? "view tiles pages" : "view tiles" });
    this.facts = el("span", { class: "facts" }, "counting tokens …");
    this.remove = el("button", { type: "button", class: "remove", "aria-label": `Remove ${medium.name}` }, "Remove");
    this.remove.addEventListener("click", () => remove(this));
    const caption = el("figcaption", {}, el("b", {}, medium.name), " ", this.facts, this.remove);
    this.node = el("figure", { class: "medium" }, el("div", { class: "views" }, this.original, this.tiles), caption);
  }

  /** Asks for the layout under `model` and draws it; whether the file can be used. */
  async count({ id, max_tokens: context }) {
    const { medium } = this;
    this.model = id;
    this.node.classList.remove("failed");
    try {
      const layouts = await medium.count(id);
      if (this.model !== id) return true; // another model was chosen meanwhile
      medium.layouts = layouts;
    } catch (error) {
      if (this.model !== id) return true;
      medium.layouts = [];
      this.tiles.replaceChildren();
      this.facts.textContent = error.message;
      this.node.classList.add("failed");
      return false;
    }
    this.facts.textContent = this.words(context);
    this.tiles.replaceChildren(...this.draw());
    if (medium.kind === "pdf") this.showPages(medium.layouts);
    return true;
  }

  words(context) {
    const { medium } = this;
    const what = medium.kind === "pdf" ? count(medium.layouts.length, "page") : describe(medium.layouts[0]);
    return `${cost(medium.tokens, context)} · ${what}`;
  }

  draw() {
    const { kind, layouts, url } = this.medium;
    if (kind === "pdf") {
      const pages = layouts.map((layout, i) => drawPage(layout, i, null));
      const more = layouts.length - PAGES_SHOWN;
      return more > 0 ? [...pages, el("span", { class: "more" }, `and ${more} more`)] : pages;
    }
    if (layouts[0].kind !== "video") return [drawTiles(layouts[0], url)];
    const { drawing, set } = drawFrames(layouts[0]);
    this.fill(layouts[0].times, set);
    return [drawing];
  }

  async fill(times, set) {
    for await (const [index, picture] of frames(this.medium.url, times, 96)) set(index, picture);
  }

  /** Puts what is printed on a PDF's pages onto their sheets, as soon as the server has drawn it. */
  async showPages(layouts) {
    this.original.replaceChildren(drawSheets(layouts));
    try {
      const pictures = await this.medium.previews();
      if (this.medium.layouts !== layouts) return; // another model was chosen meanwhile
      this.original.replaceChildren(drawSheets(layouts, pictures[0]));
      const sheets = this.tiles.querySelectorAll(".page");
      for (const [i, picture] of pictures.entries()) sheets[i]?.replaceWith(drawPage(layouts[i], i, picture));
    } catch { /* the sheets stay as they are, with their numbers */ }
  }

  /** From the tray into the conversation: it can't be removed any more, and a video can be played. */
  settle() {
    this.remove.hidden = true;
    if (this.medium.kind === "pdf") {
      // It scrolls sideways, so that it has to be reached by the keyboard as well.
      for (const [name, value] of Object.entries({ tabindex: 0, role: "group", "aria-label": "Pages" })) {
        this.tiles.setAttribute(name, value);
      }
    }
    this.original.querySelector("video")?.setAttribute("controls", "");
  }

  /** Marks regions [{page, frame, box, strength}] on the picture, of a PDF on its pages' tiles, of a video on the
   * frames that the model got; none takes the marks away. */
  mark(regions) {
    for (const old of this.node.querySelectorAll(".evidence, .mark")) old.remove();
    const image = this.original.querySelector("img");
    if (!regions.length) return;
    if (!image) {
      this.markTiles(regions);
      return;
    }
    const { naturalWidth: width, naturalHeight: height } = image;
    const label = `${count(regions.length, "region")} that the answer was read from`;
    const boxes = regions.map(({ box: [x0, y0, x1, y1], strength }) => {
      const size = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height };
      return svg("rect", { ...size, class: "mark", "stroke-opacity": strength });
    });
    const box = { viewBox: `0 0 ${width} ${height}`, class: "evidence", role: "img", "aria-label": label };
    this.original.append(svg("svg", box, ...boxes));
  }

  markTiles(regions) {
    const { kind, layouts } = this.medium;
    const views = kind === "video"
      ? this.tiles.querySelectorAll(".tiling > svg")
      : [...this.tiles.querySelectorAll(".tiling")].map((drawing) => drawing.lastElementChild);
    const at = (region) => (kind === "video" ? region.frame : region.page);
    for (const region of regions) {
      const layout = kind === "video" ? layouts[0] : layouts[region.page];
      if (views[at(region)]) markView(views[at(region)], layout, region.box, region.strength);
    }
    const first = views[at(regions[0])]?.closest(".page");
    if (first) this.tiles.scrollLeft = first.offsetLeft; // within the strip
  }
}

/** A page of a PDF: its tiles and what it costs. */
function drawPage(layout, index, picture) {
  const words = el("span", { class: "facts" }, `${index + 1}: ${count(layout.tokens, "visual token")}`);
  return el("div", { class: "page" }, drawTiles(layout, picture, String(index + 1)), words);
}

function preview({ kind, url, name }) {
  const plain = () => el("span", { class: "plain" }, NAMES[kind]);
  if (kind === "pdf") return plain();
  if (kind === "video") return el("video", { src: url, muted: true, playsinline: true, "aria-label": name });
  const image = el("img", { src: url, alt: name });
  image.addEventListener("error", () => image.replaceWith(plain()));
  return image;
}

/** Shows on the figures of `media` ([[medium, page], ...]) where `answer` was read; returns what to say of it. */
export async function showEvidence(request, media, figures) {
  const regions = await findEvidence(request);
  const strongest = Math.max(...regions.map((region) => region.weight));
  const placed = regions.map(({ media: index, frame, box, weight }) => {
    const [medium, page] = media[index] ?? [];
    return { medium, page, frame, box, strength: 0.3 + (0.7 * weight) / strongest };
  });
  for (const figure of figures) figure.mark(placed.filter(({ medium }) => medium === figure.medium));
  return regions.length ? `${count(regions.length, "region")} marked: ${places(placed)}` : "No region stood out";
}

/** "report.pdf page 2, clip.mp4 frame 5": where marks are, the strongest first, for those who can't see them. */
function places(regions) {
  const names = regions.filter(({ medium }) => medium).map(({ medium, page, frame }) => {
    if (medium.kind === "pdf") return `${medium.name} page ${page + 1}`;
    return medium.kind === "video" ? `${medium.name} frame ${frame + 1}` : medium.name;
  });
  return [...new Set(names)].join(", ");
}

/** The pictures that come with the page. `ask` is called with a File and a question, `fail` with an error. */
export function drawExamples(examples, fail, ask) {
  for (const { file, alt, question } of examples) {
    const picture = el("img", { src: file, alt, width: 160, height: 160 });
    const button = el("button", { type: "button", class: "example" }, picture, el("span", {}, question));
    button.addEventListener("click", async () => {
      try {
        const blob = await fetchBlob(file);
        ask(new File([blob], file.split("/").pop(), { type: blob.type }), question);
      } catch (error) {
        fail(error);
      }
    });
    byId("examples").append(el("li", {}, button));
  }
}
