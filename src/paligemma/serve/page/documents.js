/** Pages of the server's index, found by a query, with the heat of each of its words. */

import { addPages, indexFacts, searchPages, ServerError } from "./api.js";
import { count, duration, el, icon, labelled } from "./dom.js";
import { acceptDrops, fileButton } from "./pictures.js";

const NUM_HITS = 8;
const SETUP = "paligemma index add reports/*.pdf --index library\npaligemma serve --index library";

const pages = (n) => `${n.toLocaleString("en")} page${n === 1 ? "" : "s"}`;

export class Documents {
  constructor() {
    this.query = el("input", {
      type: "search",
      maxLength: 2000,
      autocomplete: "off",
      placeholder: "how much did revenue grow?",
    });
    this.submit = el("button.primary", { type: "submit" }, "Search");
    this.reads = el("input", { type: "checkbox" });
    this.facts = el("p.quiet");
    this.status = el("p.status", { role: "status" });
    this.answer = el("p.page-answer", { role: "status" });
    this.problem = el("p.problem", { role: "alert", hidden: true });
    this.words = el("fieldset.words", { hidden: true });
    this.hits = el("div.hits");
    this.tools = el(
      "div.actions.small",
      { hidden: true },
      fileButton("Add pages", (files) => this.add(files), {
        multiple: true,
        quiet: true,
        accept: "image/*,application/pdf",
      }),
    );
    this.form = el(
      "form.card.search",
      { onsubmit: (event) => this.#submitted(event) },
      labelled("What are you looking for?", this.query),
      this.submit,
      el("label.reads", {}, this.reads, "Read the best page and answer"),
      el("div.search-facts", {}, this.facts, this.tools),
    );
    this.setup = el(
      "div.card.setup",
      { hidden: true },
      el("p", {}, "This server searches no documents. Make an index of yours, and start it with that."),
      el("pre", { tabIndex: 0, role: "region", "aria-label": "Commands" }, el("code", {}, SETUP)),
    );
    this.element = el(
      "div.documents",
      {},
      el("h2.off-screen", {}, "Search documents"),
      this.form,
      this.setup,
      this.problem,
      this.status,
      this.answer,
      this.words,
      this.hits,
    );
    acceptDrops(this.form, (files) => this.index?.writable && this.add(files));
  }

  /** Asks the server once which index it has. */
  async open() {
    if (this.index || this.opening) return;
    this.opening = true;
    await this.#attempt(async () => this.#know(await indexFacts()));
    this.opening = false;
  }

  #know(index) {
    this.index = index;
    this.setup.hidden = true;
    this.form.hidden = false;
    this.tools.hidden = !index.writable;
    this.facts.textContent = `${index.index}: ${pages(index.num_pages)}`;
  }

  #submitted(event) {
    event.preventDefault();
    const query = this.query.value.trim();
    this.query.setAttribute("aria-invalid", String(!query));
    if (query) this.search(query);
    else this.query.focus();
  }

  async search(query) {
    this.submit.disabled = true;
    this.status.textContent = "Searching";
    this.answer.replaceChildren();
    const before = performance.now();
    await this.#attempt(async () => {
      const answer = await searchPages({ query, k: NUM_HITS, heat: true });
      this.#show(answer, performance.now() - before);
      if (this.reads.checked && answer.hits.length) await this.#answer(query);
    });
    this.submit.disabled = false;
    if (!this.problem.hidden) this.status.textContent = "";
  }

  #show({ hits, num_pages: numPages }, ms) {
    const of = `${hits.length} of ${pages(numPages)}`;
    this.status.textContent = hits.length
      ? `${of} in ${duration(ms)}`
      : "The index has no page for this query.";
    const words = hits[0]?.heat ? hits[0].words.map(({ word }) => word) : [];
    this.words.hidden = !words.length;
    this.words.replaceChildren(
      el("legend", {}, "Heat of"),
      this.#choice("any word", (hit) => hit.heat.any, true),
      ...words.map((word, k) => this.#choice(word, (hit) => hit.heat.words[k])),
      this.#choice("nothing", () => null),
    );
    this.shown = hits.map((hit, k) => ({ hit, ...this.#card(hit, k) }));
    this.hits.replaceChildren(...this.shown.map(({ card }) => card));
    if (words.length) this.#heat((hit) => hit.heat.any);
  }

  /** Lets the server's model read the best page; pages are shown before it has. */
  async #answer(query) {
    const found = this.status.textContent;
    this.status.textContent = `${found}. Reading the best page`;
    const { hits } = await searchPages({ query, k: 1, thumbnails: false, answers: 1 });
    const [best] = hits;
    this.answer.replaceChildren(
      el("b", {}, best.answer || "(the answer is empty)"),
      el("span.quiet", {}, ` from ${best.file}, page ${best.page}`),
    );
    this.status.textContent = found;
  }

  #choice(text, heatOf, checked = false) {
    const input = el("input", { type: "radio", name: "heat", checked });
    input.addEventListener("change", () => this.#heat(heatOf));
    return el("label.chip", {}, input, text);
  }

  #heat(heatOf) {
    for (const { hit, heat } of this.shown) {
      const url = heatOf(hit);
      heat.hidden = !url;
      if (url) heat.src = url;
    }
  }

  #card(hit, k) {
    const heat = el("img.heat", { alt: "", hidden: true });
    const card = el(
      "article.card.hit",
      {},
      el(
        "div.seen",
        {},
        el("img", { src: hit.thumbnail, alt: `Page ${hit.page} of ${hit.file}` }),
        heat,
      ),
      el(
        "div.hit-words",
        {},
        el("b", {}, `${k + 1}. ${hit.file}`),
        el("span.quiet", {}, `page ${hit.page}`),
        el("span.quiet", { title: "Late-interaction score" }, hit.score.toFixed(2)),
      ),
    );
    return { card, heat };
  }

  async add(files) {
    this.status.textContent = `Adding ${count(files.length, "file")}`;
    await this.#attempt(async () => {
      const { added, faults } = await addPages(files);
      this.#know(await indexFacts());
      this.status.textContent = [`Added ${pages(added)}.`, ...faults].join(" ");
    });
    if (!this.problem.hidden) this.status.textContent = "";
  }

  async #attempt(work) {
    this.problem.hidden = true;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      const hasNone = error.code === "no_index";
      this.setup.hidden = !hasNone;
      this.form.hidden = hasNone;
      this.problem.hidden = hasNone;
      this.problem.textContent = error.message;
    }
  }
}
