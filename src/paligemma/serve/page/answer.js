/** An answer as it grows: text with its objects, the table, filters, and the tokens on demand. */

import { colourOf } from "./colours.js";
import { copyText, count, duration, el, freshId, icon, swatch } from "./dom.js";
import { summary } from "./history.js";
import { areaOf, parseObjects, streamedDetections } from "./parse.js";
import { Tokens } from "./tokens.js";

export class Answer {
  /** @param {import("./viewer.js").Viewer} viewer shows the objects that this answer holds. */
  constructor(viewer) {
    this.viewer = viewer;
    this.status = el("p.status", { role: "status" });
    this.problem = el("div.problem-box", { role: "alert", hidden: true });
    this.text = el("div.answer-text", { hidden: true });
    this.filters = el("div.filters", { hidden: true });
    this.table = el("div.table-scroll", { hidden: true });
    this.tokenBox = new Tokens((index) => this.onLight?.(index));
    this.more = el("div.more", { hidden: true });
    this.element = el(
      "section.answer.card",
      { "aria-label": "Answer", hidden: true },
      this.status,
      this.problem,
      this.text,
      this.filters,
      this.table,
      this.more,
      this.tokenBox.element,
    );
    this.clear();
  }

  clear() {
    this.written = "";
    this.tokens = [];
    this.detections = [];
    this.final = null;
    this.least = 0;
    this.hiddenLabels = new Set();
    this.element.hidden = true;
    this.element.classList.remove("streaming");
    for (const part of [this.text, this.filters, this.table, this.more]) part.replaceChildren();
    for (const part of [this.problem, this.text, this.filters, this.table, this.more]) {
      part.hidden = true;
    }
    this.tokenBox.clear();
    this.viewer.setDetections([]);
  }

  /** A question was sent. */
  start() {
    this.clear();
    this.element.hidden = false;
    this.element.classList.add("streaming");
    this.status.textContent = "The model looks at the picture …";
  }

  /** What the server says before the first token. */
  began({ prompt }) {
    this.status.replaceChildren("Answering ", el("code", {}, prompt));
  }

  /** The next token: {id, text, logprob}. */
  token(token) {
    this.tokens.push(token);
    this.written += token.text;
    this.#schedule();
  }

  /** The whole answer has come. */
  done(answer, ms) {
    this.final = answer;
    this.written = answer.text;
    this.tokens = answer.tokens ?? this.tokens;
    this.detections = answer.detections ?? [];
    this.element.hidden = false;
    this.element.classList.remove("streaming");
    this.#draw();
    this.#drawStatus(ms);
    this.#drawFilters();
    this.#drawTable();
    this.filter();
  }

  /** The question failed: a sentence, and actions that may mend it. */
  fail(message, ...actions) {
    this.element.hidden = false;
    this.element.classList.remove("streaming");
    this.status.textContent = "";
    this.problem.hidden = false;
    this.problem.replaceChildren(
      el("p", {}, icon("alert"), el("span", {}, message)),
      ...(actions.length ? [el("div.actions", {}, ...actions)] : []),
    );
  }

  stopped() {
    this.element.classList.remove("streaming");
    this.status.textContent = `Stopped after ${count(this.tokens.length, "token")}.`;
  }

  /** Lights an object wherever it is shown; null lights none. */
  light(index) {
    for (const node of this.element.querySelectorAll("[data-object]")) {
      node.classList.toggle("lit", index !== null && Number(node.dataset.object) === index);
    }
  }

  /** Which objects the filters leave. */
  visible() {
    return this.detections.map(
      (d) => (d.score ?? 1) >= this.least && !this.hiddenLabels.has(d.label),
    );
  }

  filter() {
    const visible = this.visible();
    this.viewer.setVisible(visible);
    for (const node of this.element.querySelectorAll("[data-object]")) {
      node.classList.toggle("filtered", visible[Number(node.dataset.object)] === false);
    }
    for (const row of this.table.querySelectorAll("tr[data-object]"))
      row.hidden = !visible[Number(row.dataset.object)];
    const shown = visible.filter(Boolean).length;
    if (this.shownText)
      this.shownText.textContent =
        shown === visible.length
          ? `all ${visible.length} shown`
          : `${shown} of ${visible.length} shown`;
  }

  #schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (!this.final) this.#draw();
    });
  }

  /** Draws text, tokens and boxes of what has been written so far. */
  #draw() {
    const { picture } = this.viewer;
    const parsed = parseObjects(this.written);
    if (!this.final && picture)
      this.detections = streamedDetections(this.written, picture.width, picture.height);
    this.viewer.setDetections(this.detections);
    this.#drawText(parsed);
    const spans = parsed.objects.map((found, i) => ({
      start: found.start,
      end: found.end,
      index: this.#indexOf(found, i),
    }));
    this.tokenBox.show(this.tokens, spans);
  }

  /** Free text as it is; an object as a small plate that lights it. */
  #drawText({ objects }) {
    const nodes = [];
    let at = 0;
    objects.forEach((found, i) => {
      const before = this.written.slice(at, found.start).replaceAll(/[\s;]+/g, " ");
      if (before.trim()) nodes.push(before);
      nodes.push(this.#plate(found, i));
      at = found.end;
    });
    const after = objects.length
      ? this.written.slice(at).replaceAll(/^[\s;]+|[\s;]+$/g, "")
      : this.written;
    if (after) nodes.push(after);
    // Once the table is there, plates alone would only repeat it.
    const isRepeated =
      this.final && this.detections.length && nodes.every((node) => node instanceof Node);
    this.text.hidden = !nodes.length || Boolean(isRepeated);
    this.text.classList.toggle("with-objects", objects.length > 0);
    this.text.replaceChildren(...nodes);
  }

  #plate(found, i) {
    // Objects of a finished answer may be fewer than were written, where the server kept only some.
    const index = this.#indexOf(found, i);
    const isWhole = found.loc.length === 4;
    const colour = index === null ? "" : colourOf(this.detections[index].label, this.detections);
    let progress = "";
    if (!isWhole) progress = ` ${found.loc.length}/4`;
    else if (found.numSeg && !this.final) progress = ` mask ${found.numSeg}/16`;
    const props =
      index === null
        ? { title: isWhole ? "not kept by the answer's options" : "" }
        : this.#joined(index);
    return el(
      "span.plate",
      props,
      swatch(colour),
      found.label || (isWhole ? "object" : "box"),
      el("small", {}, progress),
    );
  }

  #indexOf(found, i) {
    if (!this.final) return i < this.detections.length ? i : null;
    const { width, height } = this.final.image;
    const [y0, x0, y1, x1] = found.loc.map((bin) => bin / 1023);
    const near = (box) =>
      [x0 * width, y0 * height, x1 * width, y1 * height].every(
        (v, k) => Math.abs(v - box[k]) < 0.02,
      );
    const at = this.detections.findIndex(
      (d) => (d.label ?? "") === found.label && near(d.box_xyxy_px),
    );
    return at < 0 ? null : at;
  }

  /** Properties of an element that lights the object with this index. */
  #joined(index) {
    return {
      "data-object": index,
      onpointerenter: () => this.onLight?.(index),
      onpointerleave: () => this.onLight?.(null),
    };
  }

  #drawStatus(ms) {
    const { usage, finish_reason: reason, detections, prompt } = this.final;
    let said = "Answered";
    if (detections)
      said = detections.length ? `Found ${count(detections.length, "object")}` : "Found nothing";
    const facts = [];
    if (ms !== undefined) facts.push(duration(ms));
    if (usage) facts.push(count(usage.completion_tokens, "token"));
    const aloud = el("span.off-screen", {}, `: ${summary(this.final)}. `);
    this.status.replaceChildren(
      el("b", {}, said),
      aloud,
      " ",
      el("span.quiet", {}, facts.join(" · ")),
    );
    if (!this.written.trim() && !detections?.length) {
      this.text.hidden = false;
      this.text.replaceChildren(el("span.quiet", {}, "The model wrote nothing."));
    }
    const notes = [];
    if (reason === "length")
      notes.push(
        "The answer was cut: it reached the most tokens allowed. Raise the bound in the settings.",
      );
    if (
      /^\s*segment/.test(prompt ?? "") &&
      detections?.length &&
      detections.every((d) => !d.mask)
    ) {
      notes.push("The objects came without masks. Some models outline only one label a question.");
    }
    this.more.hidden = !notes.length;
    this.more.replaceChildren(...notes.map((note) => el("p.note", {}, note)));
  }

  #drawFilters() {
    const { detections } = this;
    this.filters.hidden = !detections.length;
    if (!detections.length) return;
    const parts = [];
    this.shownText = el("output.quiet");
    if (detections.some((d) => d.score !== null && d.score !== undefined)) {
      const value = el("output", {}, "0.00");
      const slider = el("input", {
        type: "range",
        min: 0,
        max: 1,
        step: 0.01,
        value: 0,
        id: freshId("confidence"),
      });
      slider.addEventListener("input", () => {
        this.least = Number(slider.value);
        value.textContent = this.least.toFixed(2);
        this.filter();
      });
      parts.push(
        el("div.slider", {}, el("label", { htmlFor: slider.id }, "Confidence from"), slider, value),
      );
    }
    if (detections.some((d) => d.mask)) {
      const value = el("output", {}, `${Math.round(this.viewer.opacity * 100)} %`);
      const slider = el("input", {
        type: "range",
        min: 0,
        max: 1,
        step: 0.05,
        value: this.viewer.opacity,
        id: freshId("opacity"),
      });
      slider.addEventListener("input", () => {
        value.textContent = `${Math.round(slider.value * 100)} %`;
        this.viewer.setOpacity(Number(slider.value));
      });
      parts.push(
        el("div.slider", {}, el("label", { htmlFor: slider.id }, "Mask opacity"), slider, value),
      );
    }
    const labels = [...new Set(detections.map((d) => d.label))];
    const chips = labels.map((label) => {
      const colour = colourOf(label, detections);
      const number = detections.filter((d) => d.label === label).length;
      const chip = el(
        "button.label-chip",
        { type: "button", "aria-pressed": "true" },
        swatch(colour),
        label ?? "object",
        el("small", {}, String(number)),
      );
      chip.addEventListener("click", () => {
        const isShown = this.hiddenLabels.delete(label);
        if (!isShown) this.hiddenLabels.add(label);
        chip.setAttribute("aria-pressed", String(isShown));
        this.filter();
      });
      return chip;
    });
    parts.push(
      el(
        "div.label-chips",
        { role: "group", "aria-label": "Labels shown" },
        ...chips,
        this.shownText,
      ),
    );
    this.filters.replaceChildren(...parts);
  }

  #drawTable() {
    const { detections } = this;
    this.table.hidden = !detections.length;
    if (!detections.length) return;
    const hasMasks = detections.some((d) => d.mask);
    const rows = detections.map((d, i) => {
      const colour = colourOf(d.label, detections);
      const name = el(
        "button.row-name",
        { type: "button", onfocus: () => this.onLight?.(i), onblur: () => this.onLight?.(null) },
        swatch(colour),
        d.label ?? "object",
      );
      const bar = el("span.bar", { "aria-hidden": "true" });
      bar.style.setProperty("--share", d.score ?? 0);
      return el(
        "tr",
        this.#joined(i),
        el("th", { scope: "row" }, name),
        el(
          "td.score",
          {},
          d.score === null || d.score === undefined ? "–" : d.score.toFixed(2),
          bar,
        ),
        ...d.box_xyxy_px.map((value) => el("td", {}, String(Math.round(value)))),
        hasMasks && el("td", {}, d.mask ? areaOf(d.mask).toLocaleString("en") : "–"),
      );
    });
    const heads = [
      "Label",
      "Score",
      "Left",
      "Top",
      "Right",
      "Bottom",
      ...(hasMasks ? ["Mask px"] : []),
    ];
    this.table.replaceChildren(
      el(
        "table",
        {},
        el("caption.off-screen", {}, "Objects with boxes in pixels of the picture"),
        el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", {}, ...rows),
      ),
    );
  }

  /** Buttons below the answer. */
  addActions(...actions) {
    this.more.hidden = false;
    this.more.append(el("div.actions.small", {}, ...actions));
  }

  copyButton() {
    const text = () =>
      this.final.detections ? JSON.stringify(this.final, null, 2) : this.final.text;
    return el(
      "button.quiet-button",
      { type: "button", onclick: () => copyText(text()) },
      icon("copy"),
      this.final.detections ? "Copy JSON" : "Copy text",
    );
  }
}
