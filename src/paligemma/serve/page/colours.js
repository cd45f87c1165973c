/** Colours of labels: those that `paligemma.outputs.palette` gives them, in any picture and run. */

const PALETTE = [
  ["#d55e00", "#56b4e9", "#f0e442", "#009e73", "#cc79a7", "#0072b2", "#e69f00"],
  ["#eaae80", "#aadaf4", "#f8f2a0", "#80ceb9", "#e6bcd3", "#80b8d8", "#f2cf80"],
  ["#753400", "#2f6380", "#847d24", "#00573f", "#70435c", "#003f62", "#7e5700"],
].flat();

/** Colour of a label beside those of the other detections; "object" stands for none. */
export function colourOf(label, detections) {
  const names = new Set(detections.map((detection) => detection.label || "object"));
  const taken = new Map();
  for (const name of [...names].sort()) {
    let place = hash(name) % PALETTE.length;
    while (taken.has(place) && taken.size < PALETTE.length) place = (place + 1) % PALETTE.length;
    taken.set(place, name);
    if (name === (label || "object")) return PALETTE[place];
  }
  return PALETTE[hash(label || "object") % PALETTE.length];
}

/** FNV-1a in 32 bits over UTF-8. */
const hash = (text) =>
  new TextEncoder()
    .encode(text)
    .reduce((value, byte) => Math.imul(value ^ byte, 0x01000193) >>> 0, 0x811c9dc5);

/** Red, green and blue of "#rrggbb", each 0..255. */
export const rgbOf = (colour) =>
  [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));

/** Black or white, whichever reads better on a colour. */
export function inkOn(colour) {
  const [r, g, b] = rgbOf(colour).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}
