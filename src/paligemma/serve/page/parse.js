/**
 * From the text of a model to objects, while it is written. The grammar is that of
 * `paligemma.outputs.parse`: four locations (y0 x0 y1 x1), sixteen codewords or none, a label.
 */

const TOKEN = /<loc(\d{4})>|<seg(\d{3})>/g;
const NUM_LOC = 1024;
const NUM_SEG = 128;
const SEG_PER_MASK = 16;

/**
 * @typedef {Object} Found
 * @property {number[]} loc bins written so far, at most four: y0, x0, y1, x1.
 * @property {number} numSeg codewords written so far.
 * @property {string} label
 * @property {number} start position in the text.
 * @property {number} end position after the last character.
 */

/**
 * Objects of a text, the last of which may be unfinished.
 * @param {string} text
 * @returns {{objects: Found[], rest: string[]}} rest: pieces that belong to no object.
 */
export function parseObjects(text) {
  const items = itemsOf(text);
  const objects = [];
  const rest = [];
  for (let at = 0; at < items.length;) {
    const first = items[at];
    if (first.kind !== "loc") {
      rest.push(first.text);
      at += 1;
      continue;
    }
    const loc = run(items, at, "loc", 4);
    at += loc.length;
    const found = {
      loc: loc.map((item) => item.value),
      numSeg: 0,
      label: "",
      start: first.start,
      end: items[at - 1].end,
    };
    if (loc.length < 4 && at < items.length) {
      rest.push(...loc.map((item) => item.text));
      continue;
    }
    const seg = run(items, at, "seg", Infinity);
    at += seg.length;
    found.numSeg = Math.min(seg.length, SEG_PER_MASK);
    if (seg.length) found.end = items[at - 1].end;
    if (items[at]?.kind === "text") {
      const [label, ...after] = items[at].text.split(";");
      found.label = label.trim();
      found.end = items[at].start + label.length;
      rest.push(after.join(";"));
      at += 1;
    }
    objects.push(found);
  }
  return {
    objects,
    rest: rest
      .flatMap((piece) => piece.split(";"))
      .map((piece) => piece.trim())
      .filter(Boolean),
  };
}

function itemsOf(text) {
  const items = [];
  let at = 0;
  const plain = (end) => {
    if (text.slice(at, end).trim())
      items.push({ kind: "text", text: text.slice(at, end), start: at, end });
  };
  for (const match of text.matchAll(TOKEN)) {
    const value = Number(match[1] ?? match[2]);
    if (value >= (match[1] ? NUM_LOC : NUM_SEG)) continue;
    plain(match.index);
    at = match.index + match[0].length;
    items.push({
      kind: match[1] ? "loc" : "seg",
      value,
      text: match[0],
      start: match.index,
      end: at,
    });
  }
  plain(text.length);
  return items;
}

function run(items, at, kind, most) {
  let end = at;
  while (end < items.length && end - at < most && items[end].kind === kind) end += 1;
  return items.slice(at, end);
}

/**
 * Pixels of four bins: [x0, y0, x1, y1].
 * @param {number[]} loc y0, x0, y1, x1 in 0..1023.
 */
export function boxOf(loc, width, height) {
  const [y0, x0, y1, x1] = loc.map((bin) => bin / (NUM_LOC - 1));
  return [x0 * width, y0 * height, x1 * width, y1 * height];
}

/**
 * Objects to show of a text that is still written, in the form of the server's detections.
 * @returns {Array<Object>} only those with four locations; `pending` marks an unfinished mask.
 */
export function streamedDetections(text, width, height) {
  return parseObjects(text)
    .objects.filter((found) => found.loc.length === 4)
    .map((found) => ({
      label: found.label || null,
      score: null,
      box_xyxy_px: boxOf(found.loc, width, height),
      pending: found.numSeg > 0,
    }));
}

/**
 * The mask of COCO's compressed run lengths, row by row.
 * @param {{size: [number, number], counts: string}} rle
 * @returns {Uint8Array} height x width of 0 and 1.
 */
export function decodeRle({ size: [height, width], counts }) {
  const mask = new Uint8Array(height * width);
  const runs = [];
  let at = 0; // down the columns
  for (let i = 0; i < counts.length;) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(i++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32 && i < counts.length);
    if (bits & 16) value -= 1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (runs.length % 2) {
      for (let k = at; k < Math.min(at + value, mask.length); k++)
        mask[(k % height) * width + Math.floor(k / height)] = 1;
    }
    at += value;
    runs.push(value);
  }
  return mask;
}

/** Number of pixels of a mask, without decoding it to pixels. */
export function areaOf(rle) {
  let area = 0;
  for (const bit of decodeRle(rle)) area += bit;
  return area;
}
