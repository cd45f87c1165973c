/** Questions asked in this browser, with small pictures; nothing of it leaves the browser. */

import { count, el, icon, iconButton, stored } from "./dom.js";
import { thumbnail } from "./pictures.js";

const MAX_ENTRIES = 40;
const MAX_MASK_CHARS = 20_000; // of an entry; larger ones are kept without masks

export class History {
  /** @param {(entry: Object) => void} onOpen an entry is to be shown again. */
  constructor(onOpen) {
    this.onOpen = onOpen;
    this.entries = stored.get("local", "history", []);
    this.dialog = document.getElementById("history");
    this.list = el("ul.history-list");
    this.clearButton = el(
      "button",
      { type: "button", onclick: () => this.clear() },
      "Clear the history",
    );
    this.dialog.append(
      el(
        "div.dialog-head",
        {},
        el("h2", { id: "history-title" }, "History"),
        iconButton("close", "Close", () => this.dialog.close()),
      ),
      el("p.note", {}, "Kept in this browser alone, with small copies of the pictures."),
      this.list,
      el("div.actions", {}, this.clearButton),
    );
  }

  open() {
    this.#draw();
    this.dialog.showModal();
  }

  clear() {
    this.entries = [];
    stored.set("local", "history", undefined);
    this.#draw();
  }

  /** Keeps an answered question in front of the others. */
  async add({ question, answer, picture }) {
    const thumb = picture.file ? await thumbnail(picture.url) : picture.url;
    let { detections } = answer;
    if (detections && JSON.stringify(detections).length > MAX_MASK_CHARS)
      detections = detections.map(({ mask, ...rest }) => rest);
    this.entries.unshift({
      at: Date.now(),
      question,
      picture: {
        name: picture.name,
        width: picture.width,
        height: picture.height,
        imageId: picture.imageId,
        thumb,
      },
      answer: { ...answer, detections, overlay: undefined, tokens: undefined },
    });
    this.entries.length = Math.min(this.entries.length, MAX_ENTRIES);
    while (this.entries.length && !stored.set("local", "history", this.entries)) this.entries.pop();
  }

  #draw() {
    this.clearButton.disabled = !this.entries.length;
    if (!this.entries.length) {
      this.list.replaceChildren(el("li.empty", {}, "Nothing asked yet."));
      return;
    }
    this.list.replaceChildren(
      ...this.entries.map((entry) => {
        const { question, answer, picture, at } = entry;
        const open = () => {
          this.dialog.close();
          this.onOpen(entry);
        };
        const shown = picture.thumb ? el("img", { src: picture.thumb, alt: "" }) : icon("open");
        return el(
          "li",
          {},
          el(
            "button",
            { type: "button", onclick: open },
            shown,
            el(
              "span",
              {},
              el("code", {}, question.prompt),
              el("b", {}, summary(answer)),
              el("small", {}, `${picture.name} · ${answer.model} · ${ago(at)}`),
            ),
          ),
        );
      }),
    );
  }
}

/** An answer in one line. */
export function summary({ detections, text }) {
  if (!detections) return text.trim() || "nothing written";
  if (!detections.length) return "nothing found";
  const numbers = new Map();
  for (const { label } of detections)
    numbers.set(label ?? "object", (numbers.get(label ?? "object") ?? 0) + 1);
  return [...numbers].map(([label, n]) => (n === 1 ? label : `${n} × ${label}`)).join(", ");
}

function ago(at) {
  const minutes = Math.round((Date.now() - at) / 60_000);
  if (minutes < 1) return "just now";
  if (minutes < 60) return `${count(minutes, "minute")} ago`;
  if (minutes < 60 * 24) return `${count(Math.round(minutes / 60), "hour")} ago`;
  return new Date(at).toLocaleDateString("en", { day: "numeric", month: "short" });
}
