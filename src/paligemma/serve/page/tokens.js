/** The tokens of an answer, each with the probability that the model gave it. */

import { el } from "./dom.js";

export class Tokens {
  /** @param {(index: ?number) => void} onLight an object is pointed at by one of its tokens. */
  constructor(onLight) {
    this.list = el("ol.tokens");
    this.count = el("span.quiet");
    const summary = el("summary", {}, "Tokens ", this.count);
    this.element = el("details.tokens-box", { hidden: true }, summary, this.list);
    for (const [event, isOver] of [
      ["pointerover", true],
      ["pointerout", false],
    ]) {
      this.list.addEventListener(event, ({ target }) => {
        const item = target.closest("[data-object]");
        if (item) onLight(isOver ? Number(item.dataset.object) : null);
      });
    }
  }

  clear() {
    this.element.hidden = true;
    this.list.replaceChildren();
  }

  /**
   * Shows tokens; those already there stay.
   * @param {Array<{id: ?number, text: string, logprob: ?number}>} tokens
   * @param {Array<{start: number, end: number, index: ?number}>} spans of the text that belong to
   *   objects, with their index.
   */
  show(tokens, spans) {
    this.element.hidden = !tokens.length;
    this.count.textContent = String(tokens.length);
    for (const token of tokens.slice(this.list.childElementCount)) this.list.append(itemOf(token));
    let start = 0;
    tokens.forEach(({ text }, i) => {
      const span = spans.find(({ start: from, end }) => start >= from && start < end);
      start += text.length;
      const { dataset } = this.list.children[i];
      if (span && span.index !== null) dataset.object = span.index;
      else delete dataset.object;
    });
  }
}

function itemOf({ id, text, logprob }) {
  const p = Math.exp(logprob ?? Number.NaN);
  const isKnown = Number.isFinite(p);
  const bar = el("span.bar", { "aria-hidden": "true" });
  if (isKnown) bar.style.setProperty("--share", p.toFixed(3));
  const shown = text.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "∅";
  return el(
    "li",
    { title: id === null ? "the rest of a character" : `token ${id}` },
    el("code", {}, shown),
    el("small", {}, isKnown ? percent(p) : "–"),
    bar,
  );
}

function percent(p) {
  if (p >= 0.9995) return "100 %";
  return `${(p * 100).toFixed(p >= 0.0995 ? 0 : 1)} %`;
}
