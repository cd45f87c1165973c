/** Elements, storage, downloads and the clipboard: the little that every part of the page needs. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with properties, attributes, listeners and children.
 * @param {string} spec tag name with classes, such as "button.quiet".
 * @param {Object<string, any>} [props] `onclick` and the like are listeners; `data-`, `aria-` and
 *   unknown names are attributes, left out where null, undefined or false; others are properties.
 * @param {...(Node|string|null|undefined|false)} children
 */
export function el(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(
    ...children.filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

/** An element of SVG with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** The drawing of `index.html` with this name, hidden from screen readers. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", "aria-hidden": "true" },
    svg("use", { href: `#icon-${name}` }),
  );
}

/** A small square of a colour; "" is none yet. */
export function swatch(colour) {
  const square = el("span.swatch");
  square.style.background = colour;
  return square;
}

/** A button that shows a drawing alone; its name is read out and shown as a tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return el(
    "button.icon-button",
    { type: "button", "aria-label": label, title: label, onclick, ...props },
    icon(name),
  );
}

let number = 0;
/** A name that no other element has, for labels. */
export const freshId = (stem) => `${stem}-${++number}`;

/** A visible label above a field. */
export function labelled(text, field, note) {
  field.id ||= freshId("field");
  return el(
    "div.field",
    {},
    el("label", { htmlFor: field.id }, text),
    field,
    note && el("p.note", {}, note),
  );
}

/** Values in the browser's storage; one that cannot be read or written counts as absent. */
export const stored = {
  /** @param {"local"|"session"} kind */
  get(kind, key, otherwise) {
    try {
      const text = (kind === "local" ? localStorage : sessionStorage).getItem(`paligemma.${key}`);
      return text === null ? otherwise : JSON.parse(text);
    } catch {
      return otherwise;
    }
  },
  /** @returns {boolean} whether the value is kept. */
  set(kind, key, value) {
    try {
      const storage = kind === "local" ? localStorage : sessionStorage;
      if (value === undefined) storage.removeItem(`paligemma.${key}`);
      else storage.setItem(`paligemma.${key}`, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
};

/** Offers a file to save. */
export function download(name, blob) {
  const href = URL.createObjectURL(blob);
  const link = el("a", { href, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** Copies a text, also where the page is not served over https. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea.off-screen", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast("Copied");
}

let toastTimer;
/** A short notice at the bottom of the page, read out politely. */
export function toast(text) {
  const place = document.getElementById("toast");
  place.textContent = text;
  place.dataset.shown = "";
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    delete place.dataset.shown;
    place.textContent = "";
  }, 2500);
}

/** "3 objects", "1 object". */
export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

/** Milliseconds as a reader says them. */
export const duration = (ms) =>
  ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

const SHOWN_PX = 160; // of what lies below the fold, as on a telephone: its words or first lines

/** Scrolls down where the beginning of an element is not on the screen, and no further. */
export function bringIntoView(element) {
  const { top, height } = element.getBoundingClientRect();
  const missing = top + Math.min(height, SHOWN_PX) + 16 - innerHeight;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (missing > 0) scrollBy({ top: missing, behavior: isCalm ? "instant" : "smooth" });
}

/** Resolves after some time, or rejects as soon as the signal is aborted. */
export function wait(ms, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}
