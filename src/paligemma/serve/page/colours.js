/** Colours of labels: those of Okabe and Ito, as `paligemma.outputs.draw` takes them. */

const PALETTE = ["#d55e00", "#56b4e9", "#f0e442", "#009e73", "#cc79a7", "#0072b2", "#e69f00"];

/** Colour of a label; labels take the palette in the order of first appearance. */
export function colourOf(label, detections) {
  const labels = [...new Set(detections.map((detection) => detection.label))];
  return PALETTE[Math.max(labels.indexOf(label), 0) % PALETTE.length];
}

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
