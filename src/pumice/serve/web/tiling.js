// Draws what the model gets: the picture on its canvas of tiles, beside the overview, with the tokens' grid.
// SVG, so that lines stay one pixel wide at any size. Everything follows from the server's layout, in integers.

import { count, number, svg } from "./dom.js";

/** "2 × 2 tiles of 224 pixels and an overview" */
export function describe(layout) {
  const { tile } = layout;
  if (layout.kind === "video") return `${count(layout.frames, "frame")} of ${tile} × ${tile} pixels`;
  const several = layout.cols * layout.rows > 1;
  const grid = several ? `${layout.cols} × ${layout.rows} tiles of ${tile} pixels` : `1 tile of ${tile} pixels`;
  return layout.overview ? `${grid} and an overview` : grid;
}

/** "1,312 visual tokens, 16% of the model's context" */
export function cost(tokens, context) {
  const share = context ? (100 * tokens) / context : 0;
  const percent = share >= 1 ? Math.round(share) : share.toFixed(1);
  return count(tokens, "visual token") + (context ? `, ${percent}% of the model's context` : "");
}

/** The drawing of a picture's or page's layout. Without `picture` (a URL) the paper stays empty and shows `words`. */
export function drawTiles(layout, picture, words = "") {
  const { tile, cols, rows } = layout;
  const left = layout.overview ? tile + tile / 8 : 0;
  const width = left + cols * tile;
  const drawing = frame(width, rows * tile, describe(layout));
  if (layout.overview) drawing.append(view(0, tile, tile, [0, 0], [tile, tile], picture, words));
  const canvas = view(left, cols * tile, rows * tile, layout.offset, layout.resized, picture, words);
  canvas.append(tokenLines(layout), ...unread(layout), tileLines(layout));
  drawing.append(canvas);
  return drawing;
}

/** Sheets of paper in the first page's proportions, with their number or the `picture` of the first. */
export function drawSheets(layouts, picture = null) {
  const [width, height] = layouts[0].size;
  const step = Math.min(width, height) / 24;
  const behind = Math.min(layouts.length, 3) - 1;
  const words = count(layouts.length, "page");
  const drawing = frame(width + 4 * step, height + 4 * step, words);
  for (let i = behind; i >= 0; i -= 1) {
    const at = { x: step + i * step, y: step + (behind - i) * step, width, height };
    drawing.append(svg("rect", { ...at, class: "paper sheet" }));
  }
  if (picture) {
    drawing.append(image(picture, [step, step + behind * step], [width, height]));
    return drawing;
  }
  const middle = { x: step + width / 2, y: step + behind * step + height / 2 };
  drawing.append(svg("text", { ...middle, "font-size": Math.min(width, height) / 8, class: "words" }, words));
  return drawing;
}

/** Marks a part [x0, y0, x1, y1] (fractions of the picture) on a view: the last of `drawTiles`, one of `drawFrames`. */
export function markView(view, { offset, resized }, [x0, y0, x1, y1], strength) {
  const [x, y] = [offset[0] + x0 * resized[0], offset[1] + y0 * resized[1]];
  const size = { width: (x1 - x0) * resized[0], height: (y1 - y0) * resized[1] };
  view.append(svg("rect", { x, y, ...size, class: "mark", "stroke-opacity": strength }));
}

/** The drawing of a video's sampled frames. `set(index, picture)` fills one in. */
export function drawFrames(layout) {
  const { tile, frames } = layout;
  const cols = Math.ceil(Math.sqrt(frames * 1.3));
  const step = tile * 1.06;
  const drawing = frame(cols * step, Math.ceil(frames / cols) * step, describe(layout));
  const cells = Array.from({ length: frames }, (_, i) => {
    const cell = view((i % cols) * step, tile, tile, layout.offset, layout.resized, null, number(i + 1));
    cell.setAttribute("y", Math.floor(i / cols) * step);
    drawing.append(cell);
    return cell;
  });
  const set = (index, picture) => {
    cells[index].querySelector("text")?.remove();
    cells[index].querySelector(".edge").before(image(picture, layout.offset, layout.resized));
  };
  return { drawing, set };
}

function frame(width, height, label) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "tiling", role: "img", "aria-label": label });
}

/** A clipped part of the drawing that holds the picture at `offset`, `size` large. */
function view(x, width, height, offset, size, picture, words) {
  const whole = svg("svg", { x, y: 0, width, height });
  whole.append(svg("rect", { width, height, class: "canvas" }));
  if (picture) whole.append(image(picture, offset, size));
  else {
    const [w, h] = size;
    whole.append(svg("rect", { x: offset[0], y: offset[1], width: w, height: h, class: "paper" }));
    const middle = { x: offset[0] + w / 2, y: offset[1] + h / 2, "font-size": Math.min(w, h) / 2.5 };
    whole.append(svg("text", { ...middle, class: "words" }, words));
  }
  whole.append(svg("rect", { width, height, class: "edge" }));
  return whole;
}

function image(href, [x, y], [width, height]) {
  return svg("image", { href, x, y, width, height, preserveAspectRatio: "none" });
}

function tileLines({ tile, cols, rows }) {
  const down = Array.from({ length: cols - 1 }, (_, i) => `M${(i + 1) * tile} 0V${rows * tile}`);
  const across = Array.from({ length: rows - 1 }, (_, i) => `M0 ${(i + 1) * tile}H${cols * tile}`);
  return svg("path", { d: [...down, ...across].join(""), class: "cuts" });
}

/** One cell a token of the kept map. */
function tokenLines(layout) {
  const [x, y, width, height] = kept(layout);
  const [h, w] = layout.map;
  const down = Array.from({ length: w - 1 }, (_, i) => `M${x + ((i + 1) * width) / w} ${y}v${height}`);
  const across = Array.from({ length: h - 1 }, (_, i) => `M${x} ${y + ((i + 1) * height) / h}h${width}`);
  return svg("path", { d: [...down, ...across].join(""), class: "tokens" });
}

/** Shades the canvas that no token stands for. */
function unread(layout) {
  const [x, y, width, height] = kept(layout);
  const full = [layout.cols * layout.tile, layout.rows * layout.tile];
  if (width === full[0] && height === full[1]) return [];
  const d = `M0 0H${full[0]}V${full[1]}H0ZM${x} ${y}V${y + height}H${x + width}V${y}Z`;
  return [svg("path", { d, class: "dropped", "fill-rule": "evenodd" })];
}

function kept({ keep: [top, bottom, left, right], tile, side }) {
  const scale = tile / side;
  return [left * scale, top * scale, (right - left) * scale, (bottom - top) * scale];
}
