/** One question about many pictures: progress, a table, exports; a bad file stops nothing. */

import { ask, ServerError } from "./api.js";
import { Composer } from "./composer.js";
import { bringIntoView, count, download, duration, el, icon, wait } from "./dom.js";
import { overlay, toCoco, toJson, toOverlays, toYolo } from "./export.js";
import { summary } from "./history.js";
import { acceptDrops, fileButton, openExample, EXAMPLES, thumbnail } from "./pictures.js";

const AT_ONCE = 4;
const MAX_FILES = 2000;
const MAX_TRIES = 6;
const DEFAULT_WAIT_S = 2;

export class Batch {
  /**
   * @param {{options: (prompt: string) => Object, onOpen: (row: Object, question: Object) => void}} links
   *   `options` are the fields of settings and model; `onOpen` shows a row with its picture.
   */
  constructor({ options, onOpen }) {
    this.options = options;
    this.onOpen = onOpen;
    this.rows = [];
    this.composer = new Composer({
      name: "batch",
      submit: "Ask all",
      onSubmit: (question) => this.run(question),
      onStop: () => this.controller?.abort(),
    });
    const files = (list) => this.add(list);
    this.drop = el(
      "div.drop.small",
      {},
      icon("batch"),
      el("p", {}, el("b", {}, "Drop many pictures here"), " or"),
      el(
        "div.actions",
        {},
        fileButton("Choose files", files, { multiple: true }),
        el("button", { type: "button", onclick: () => this.addExamples() }, "Take the examples"),
      ),
    );
    acceptDrops(this.drop, files);
    this.progress = el("progress", {
      max: 1,
      value: 0,
      "aria-label": "Pictures answered",
      hidden: true,
    });
    this.status = el("p.status", { role: "status" }, "No pictures yet.");
    this.exports = ["COCO", "YOLO", "JSON", "Overlays"].map((kind) =>
      el(
        "button.quiet-button",
        { type: "button", disabled: true, onclick: () => this.export(kind) },
        icon("save"),
        kind === "Overlays" ? "PNG overlays" : kind,
      ),
    );
    this.clearButton = el(
      "button.quiet-button",
      { type: "button", disabled: true, onclick: () => this.clear() },
      "Clear",
    );
    this.body = el("tbody");
    const heads = ["Picture", "File", "Answer", "Time"];
    this.table = el(
      "div.table-scroll.card",
      { hidden: true, tabIndex: 0, role: "region", "aria-label": "Pictures and answers" },
      el(
        "table.batch-table",
        {},
        el("caption.off-screen", {}, "Pictures and their answers"),
        el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
        this.body,
      ),
    );
    this.main = el(
      "div.batch-main",
      {},
      el(
        "div.batch-bar",
        {},
        this.status,
        el(
          "div.actions.small",
          { role: "group", "aria-label": "Export" },
          ...this.exports,
          this.clearButton,
        ),
        this.progress,
      ),
      this.table,
    );
    this.element = el(
      "div.batch",
      {},
      el("div.batch-side", {}, this.drop, this.composer.element),
      this.main,
    );
  }

  get busy() {
    return Boolean(this.controller);
  }

  async addExamples() {
    try {
      const pictures = await Promise.all(EXAMPLES.map(openExample));
      this.add(pictures.map(({ file, name }) => new File([file], name, { type: file.type })));
    } catch (error) {
      this.status.textContent = error.message;
    }
  }

  add(files) {
    const room = MAX_FILES - this.rows.length;
    for (const file of files.slice(0, room)) this.#addRow(file);
    this.#refresh();
    if (files.length > room) {
      const rest = count(files.length - room, "file");
      this.status.textContent = `A batch holds ${MAX_FILES} pictures; ${rest} left out.`;
    }
  }

  clear() {
    this.controller?.abort();
    for (const row of this.rows) URL.revokeObjectURL(row.url);
    this.rows = [];
    this.body.replaceChildren();
    this.progress.hidden = true;
    this.#refresh();
  }

  /** Asks every picture the same; those answered before are asked again. */
  async run(question) {
    if (!this.rows.length) {
      this.status.textContent = "Drop or choose pictures first.";
      bringIntoView(this.main);
      return;
    }
    const controller = (this.controller = new AbortController());
    const options = this.options(question.prompt);
    this.question = question;
    const waiting = [...this.rows];
    for (const row of waiting) this.#set(row, { answer: null, error: null, state: "waiting" });
    this.composer.setBusy(true);
    this.progress.hidden = false;
    this.#refresh();
    bringIntoView(this.main);
    const worker = async () => {
      for (let row = waiting.shift(); row && !controller.signal.aborted; row = waiting.shift()) {
        await this.#askOne(row, question, options, controller.signal);
        if (this.controller === controller) this.#refresh();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    for (const row of this.rows)
      if (row.state === "waiting" || row.state === "asking") this.#set(row, { state: "stopped" });
    this.controller = null;
    this.composer.setBusy(false);
    this.#refresh();
  }

  async #askOne(row, question, options, signal) {
    this.#set(row, { state: "asking" });
    const began = performance.now();
    for (let tries = 1; ; tries++) {
      try {
        const answer = await ask(
          { task: question.call, fields: { ...question.fields, ...options } },
          row,
          { signal },
        );
        this.#set(row, { state: "done", answer, ms: performance.now() - began });
        return;
      } catch (error) {
        if (signal.aborted) return;
        const isBusy = (error.status === 429 || error.status === 503) && tries < MAX_TRIES;
        if (!isBusy) {
          const message =
            error instanceof ServerError ? error.message : "The page failed on this file.";
          this.#set(row, { state: "failed", error: message });
          return;
        }
        const seconds = error.retryAfter ?? DEFAULT_WAIT_S;
        this.#set(row, {
          state: "asking",
          note: `The server is busy; again in ${Math.ceil(seconds)} s`,
        });
        await wait(seconds * 1000, signal).catch(() => {});
        if (signal.aborted) return;
      }
    }
  }

  #addRow(file) {
    const url = URL.createObjectURL(file);
    const row = {
      file,
      name: file.webkitRelativePath || file.name,
      url,
      imageId: null,
      state: "new",
      answer: null,
      error: null,
    };
    row.picture = el("td.thumb");
    row.said = el("td.said");
    row.time = el("td.quiet");
    row.element = el(
      "tr",
      {},
      row.picture,
      el("th", { scope: "row" }, row.name),
      row.said,
      row.time,
    );
    this.body.append(row.element);
    this.rows.push(row);
    this.#showThumb(row, file);
    this.#set(row, {});
  }

  async #showThumb(row, blob) {
    const url = URL.createObjectURL(blob);
    const thumb = await thumbnail(url, 160);
    URL.revokeObjectURL(url);
    row.picture.replaceChildren(thumb ? el("img", { src: thumb, alt: "" }) : icon("alert"));
  }

  #set(row, changes) {
    Object.assign(row, changes);
    row.element.dataset.state = row.state;
    const { answer, state } = row;
    row.time.textContent = answer ? duration(row.ms) : "";
    const states = {
      new: "",
      waiting: "Waiting",
      asking: row.note ?? "Asking …",
      stopped: "Stopped",
    };
    if (state === "failed") row.said.replaceChildren(icon("alert"), el("span", {}, row.error));
    else if (state !== "done") row.said.replaceChildren(el("span.quiet", {}, states[state]));
    else {
      const open = el(
        "button.row-name",
        { type: "button", title: "Look at it", onclick: () => this.onOpen(row, this.question) },
        summary(answer),
      );
      const cut = answer.finish_reason === "length" ? el("small.quiet", {}, " (cut)") : null;
      row.said.replaceChildren(open, ...(cut ? [cut] : []));
      if (answer.detections?.length)
        overlay(row.file, answer.detections).then(
          (png) => this.#showThumb(row, png),
          () => {},
        );
    }
    row.note = undefined;
  }

  #refresh() {
    const { length } = this.rows;
    const done = this.rows.filter((row) => row.state === "done");
    const failed = this.rows.filter((row) => row.state === "failed").length;
    this.table.hidden = !length;
    this.clearButton.disabled = !length;
    for (const button of this.exports) button.disabled = !done.length;
    this.progress.max = Math.max(length, 1);
    this.progress.value = done.length + failed;
    const objects = done.reduce((sum, row) => sum + (row.answer.detections?.length ?? 0), 0);
    const parts = [
      length ? `${done.length} of ${count(length, "picture")} answered` : "No pictures yet",
    ];
    if (objects) parts.push(count(objects, "object"));
    if (failed) parts.push(`${failed} failed`);
    this.status.textContent = `${parts.join(" · ")}.`;
  }

  async export(kind) {
    if (kind === "COCO") download("coco.json", toCoco(this.rows));
    else if (kind === "JSON") download("answers.json", toJson(this.rows));
    else if (kind === "YOLO") download("yolo.zip", await toYolo(this.rows));
    else {
      this.status.textContent = "Drawing the overlays …";
      download("overlays.zip", await toOverlays(this.rows));
      this.#refresh();
    }
  }
}
