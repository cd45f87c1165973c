/** Answers about many pictures as files of other tools, written in the browser. */

import { colourOf, inkOn, rgbOf } from "./colours.js";
import { areaOf, decodeRle } from "./parse.js";
import { zip } from "./zip.js";

/**
 * @typedef {Object} Row
 * @property {string} name of the file.
 * @property {?Object} answer of the server; null where it failed.
 * @property {?string} error
 */

const named = (detection) => detection.label ?? "object";
const valid = (row) =>
  (row.answer?.detections ?? []).filter(
    ({ valid: isValid, box_xyxy_px: [x0, y0, x1, y1] }) => isValid !== false && x1 > x0 && y1 > y0,
  );
const categoriesOf = (rows) => [...new Set(rows.flatMap((row) => valid(row).map(named)))].sort();
const round = (value) => Math.round(value * 100) / 100;
const text = (value, type) => new Blob([value], { type });

/** A name without its ending, each only once. */
function stems(rows) {
  const used = new Set();
  return rows.map(({ name }) => {
    const base = name.replace(/^.*[/\\]/, "").replace(/\.[^.]+$/, "") || "picture";
    let stem = base;
    for (let n = 2; used.has(stem.toLowerCase()); n++) stem = `${base}-${n}`;
    used.add(stem.toLowerCase());
    return stem;
  });
}

/** Every row as the server answered it, or its error. */
export function toJson(rows) {
  const results = rows.map(({ name, answer, error }) => ({
    image: name,
    ...(answer ?? { error: error ?? "not asked" }),
  }));
  return text(JSON.stringify({ results }, null, 2), "application/json");
}

/** One file of COCO: pictures, categories, annotations with scores and run lengths. */
export function toCoco(rows) {
  const asked = rows.filter((row) => row.answer?.image);
  const names = categoriesOf(asked);
  const annotations = asked.flatMap((row, i) =>
    valid(row).map((detection) => {
      const [x0, y0, x1, y1] = detection.box_xyxy_px;
      return {
        image_id: i + 1,
        category_id: names.indexOf(named(detection)) + 1,
        bbox: [x0, y0, x1 - x0, y1 - y0].map(round),
        area: detection.mask ? areaOf(detection.mask) : round((x1 - x0) * (y1 - y0)),
        iscrowd: 0,
        ...(typeof detection.score === "number" && { score: detection.score }),
        ...(detection.mask && { segmentation: detection.mask }),
      };
    }),
  );
  const coco = {
    info: { description: "Answers of PaliGemma" },
    images: asked.map(({ name, answer }, i) => ({
      id: i + 1,
      file_name: name,
      width: answer.image.width,
      height: answer.image.height,
    })),
    categories: names.map((name, i) => ({ id: i + 1, name })),
    annotations: annotations.map((annotation, i) => ({ id: i + 1, ...annotation })),
  };
  return text(JSON.stringify(coco, null, 2), "application/json");
}

/** A zip of YOLO's label files, with the names of the classes. */
export async function toYolo(rows) {
  const asked = rows.filter((row) => row.answer?.image);
  const names = categoriesOf(asked);
  const files = new Map();
  stems(asked).forEach((stem, i) => {
    const lines = valid(asked[i]).map((detection) => {
      const [y0, x0, y1, x1] = detection.box_yxyx.map((value) => Math.min(Math.max(value, 0), 1));
      const numbers = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0].map((value) =>
        value.toFixed(6),
      );
      return `${names.indexOf(named(detection))} ${numbers.join(" ")}\n`;
    });
    files.set(`labels/${stem}.txt`, text(lines.join(""), "text/plain"));
  });
  const classes = names.map((name, i) => `  ${i}: ${JSON.stringify(name)}\n`).join("");
  files.set(
    "data.yaml",
    text(`path: .\ntrain: images\nval: images\nnames:\n${classes}`, "text/plain"),
  );
  return zip(files);
}

/** A zip of the pictures with their objects; those the browser cannot draw are left out. */
export async function toOverlays(rows) {
  const drawable = rows.filter((row) => row.answer && row.file);
  const files = new Map();
  const names = stems(drawable);
  for (const [i, row] of drawable.entries()) {
    const png = await overlay(row.file, row.answer.detections ?? []).catch(() => null);
    if (png) files.set(`${names[i]}.png`, png);
  }
  return zip(files);
}

/** A picture with boxes, masks and labels: a PNG in the picture's own size. */
export async function overlay(file, detections) {
  const bitmap = await createImageBitmap(file);
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const line = Math.max(2, Math.round(Math.min(width, height) / 200));
  for (const detection of detections)
    if (detection.mask) drawMask(context, detection, colourOf(detection.label, detections));
  context.font = `600 ${line * 6}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const detection of detections) {
    const [x0, y0, x1, y1] = detection.box_xyxy_px;
    const colour = colourOf(detection.label, detections);
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const score = typeof detection.score === "number" ? ` ${detection.score.toFixed(2)}` : "";
    const label = named(detection) + score;
    const plate = { width: context.measureText(label).width + line * 4, height: line * 8 };
    const top = y0 >= plate.height ? y0 - plate.height : y0;
    context.fillStyle = colour;
    context.fillRect(x0 - line / 2, top, plate.width, plate.height);
    context.fillStyle = inkOn(colour);
    context.fillText(label, x0 + line * 1.5, top + line);
  }
  return canvas.convertToBlob({ type: "image/png" });
}

function drawMask(context, detection, colour) {
  const [height, width] = detection.mask.size;
  const bits = decodeRle(detection.mask);
  const layer = new OffscreenCanvas(width, height);
  const pen = layer.getContext("2d");
  const pixels = pen.createImageData(width, height);
  const [r, g, b] = rgbOf(colour);
  bits.forEach((bit, i) => bit && pixels.data.set([r, g, b, 115], i * 4));
  pen.putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
}
