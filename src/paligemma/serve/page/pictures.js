/** Pictures from files, the clipboard, the camera and the examples, to be shown and sent. */

import { el, icon, iconButton } from "./dom.js";

export const EXAMPLES = [
  { file: "desk.webp", name: "Desk", labels: "cat ; pizza ; trumpet ; star ; digit" },
  { file: "flower.webp", name: "Flower", labels: "sign ; digit ; star" },
  { file: "wall.webp", name: "Wall", labels: "dog ; gift ; crayon ; circle" },
];
export const exampleUrl = (file) => new URL(`examples/${file}`, import.meta.url).href;

/**
 * @typedef {Object} Picture
 * @property {?Blob} file what is sent; null where only the history's small copy is left.
 * @property {string} name
 * @property {string} url what the browser shows.
 * @property {number} width in pixels, upright.
 * @property {number} height
 * @property {?string} imageId as the server's answers give it, so that it travels once.
 */

/**
 * Opens a file.
 * @returns {Promise<Picture>}
 * @throws {Error} with a sentence, where the browser cannot show it.
 */
export async function openFile(file, name = file.name || "pasted picture") {
  const url = URL.createObjectURL(file);
  const img = new Image();
  img.src = url;
  try {
    await img.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error(
      `${name} is no picture that this browser can show. ` +
        "Choose a JPEG, PNG, WebP, GIF or AVIF file.",
    );
  }
  return { file, name, url, width: img.naturalWidth, height: img.naturalHeight, imageId: null };
}

/** Opens one of the examples. */
export async function openExample({ file, name }) {
  const response = await fetch(exampleUrl(file));
  if (!response.ok) throw new Error("The example cannot be loaded: the server does not answer.");
  return openFile(await response.blob(), `${name.toLowerCase()}.webp`);
}

/** Files of a drop or of the clipboard. */
export const filesOf = (transfer) => [...(transfer?.files ?? [])];

/** A small copy for lists: a data URL, or null where the picture cannot be drawn. */
export async function thumbnail(url, sidePx = 256) {
  try {
    const img = new Image();
    img.src = url;
    await img.decode();
    const scale = Math.min(1, sidePx / Math.max(img.naturalWidth, img.naturalHeight));
    const canvas = el("canvas", {
      width: Math.max(1, Math.round(img.naturalWidth * scale)),
      height: Math.max(1, Math.round(img.naturalHeight * scale)),
    });
    canvas.getContext("2d").drawImage(img, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return null;
  }
}

/**
 * Lets files be dropped on an element, with a visible sign while they hover.
 * @param {(files: File[]) => void} onFiles
 */
export function acceptDrops(element, onFiles) {
  let depth = 0;
  const over = (by) => {
    depth = Math.max(0, depth + by);
    element.classList.toggle("dropping", depth > 0);
  };
  element.addEventListener("dragenter", (event) => {
    event.preventDefault();
    over(1);
  });
  element.addEventListener("dragleave", () => over(-1));
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    over(0);
    const files = filesOf(event.dataTransfer);
    if (files.length) onFiles(files);
  });
}

/** A button that opens the file dialog. */
export function fileButton(label, onFiles, { multiple = false, quiet = false, accept = "image/*" } = {}) {
  const input = el("input", {
    type: "file",
    accept,
    multiple,
    hidden: true,
    onchange: () => {
      if (input.files.length) onFiles([...input.files]);
      input.value = "";
    },
  });
  const button = el(
    quiet ? "button.quiet-button" : "button",
    { type: "button", onclick: () => input.click() },
    icon("open"),
    label,
  );
  return el("span.file-button", {}, button, input);
}

/**
 * Takes a picture with the camera in a dialog.
 * @returns {Promise<?File>} null where it was closed without one.
 * @throws {Error} with a sentence, where there is no camera or it was refused.
 */
export async function photograph() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error(
      "A browser gives its camera only to pages of https or of its own machine. Open a file instead.",
    );
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 } },
    });
  } catch (error) {
    throw new Error(
      error.name === "NotAllowedError"
        ? "The camera was refused. Allow it in the settings of the browser, or open a file instead."
        : "No camera was found. Open a file instead.",
    );
  }
  const video = el("video", {
    autoplay: true,
    playsInline: true,
    muted: true,
    "aria-label": "What the camera sees",
  });
  video.srcObject = stream;
  try {
    return await new Promise((resolve) => {
      const dialog = el("dialog.camera", {
        "aria-label": "Camera",
        onclose: () => {
          dialog.remove();
          resolve(null);
        },
      });
      const take = async () => {
        const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
        canvas.getContext("2d").drawImage(video, 0, 0);
        canvas.toBlob(
          (blob) => {
            resolve(blob && new File([blob], "camera.jpg", { type: "image/jpeg" }));
            dialog.close();
          },
          "image/jpeg",
          0.92,
        );
      };
      dialog.append(
        el(
          "div.dialog-head",
          {},
          el("h2", {}, "Camera"),
          iconButton("close", "Close", () => dialog.close()),
        ),
        video,
        el(
          "div.actions",
          {},
          el("button.primary", { type: "button", onclick: take }, "Take the picture"),
        ),
      );
      document.body.append(dialog);
      dialog.showModal();
    });
  } finally {
    for (const track of stream.getTracks()) track.stop();
  }
}
