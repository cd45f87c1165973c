/** The page: which view is shown, which picture is asked, and how the parts meet. */

import { listModels, ServerError } from "./api.js";
import { Batch } from "./batch.js";
import { Composer } from "./composer.js";
import { Documents } from "./documents.js";
import { copyText, download, el, icon, stored } from "./dom.js";
import { overlay } from "./export.js";
import { History } from "./history.js";
import { Pane } from "./pane.js";
import {
  acceptDrops,
  EXAMPLES,
  exampleUrl,
  fileButton,
  filesOf,
  openExample,
  openFile,
  photograph,
} from "./pictures.js";
import { Settings } from "./settings.js";
import { curl, pythonCode } from "./snippets.js";

const byId = (id) => document.getElementById(id);
const VIEWS = { ask: "Ask", compare: "Compare", batch: "Batch", documents: "Documents" };

class Page {
  constructor() {
    this.view = "ask";
    this.models = [];
    this.picture = null;
    this.settings = new Settings(() => this.loadModels());
    this.history = new History((entry) => this.restore(entry));
    const listeners = {
      onDone: (pane, done) => this.answered(pane, done),
      onSettings: () => this.settings.open(),
    };
    this.panes = [new Pane(listeners), new Pane(listeners)];
    [this.panes[0].twin, this.panes[1].twin] = [this.panes[1], this.panes[0]];
    this.composer = new Composer({
      name: "one",
      submit: "Ask",
      onSubmit: (question) => this.ask(question),
      onStop: () => this.stop(),
    });
    this.batch = new Batch({
      options: (prompt) => this.settings.fields(prompt, byId("model").value),
      onOpen: (row, question) => this.openRow(row, question),
    });
    this.documents = new Documents();
    this.#build();
    this.#listen();
    this.route();
    this.loadModels();
  }

  #build() {
    this.codeText = el("code");
    this.codeBox = el(
      "details.code-box.card",
      { hidden: true, ontoggle: () => this.showCode() },
      el("summary", {}, "The same from a program"),
      el("div.actions.small", {}, this.#codeButton("curl"), this.#codeButton("Python")),
      el("pre", { tabIndex: 0, role: "region", "aria-label": "Code" }, this.codeText),
    );
    this.code = "curl";
    byId("composer").append(this.composer.element, this.codeBox);
    byId("panes").append(...this.panes.map((pane) => pane.element));
    byId("batch").append(this.batch.element);
    byId("documents").append(this.documents.element);
    this.problem = byId("source-problem");
    const open = (files) => this.openFiles(files);
    byId("source-actions").append(
      fileButton("Open", open, { quiet: true }),
      this.#cameraButton("button.quiet-button"),
    );
    byId("drop-actions").append(fileButton("Choose a file", open), this.#cameraButton("button"));
    for (const place of [byId("examples"), byId("drop-examples")]) {
      place.append(
        ...EXAMPLES.map((example) =>
          el(
            "button.example",
            {
              type: "button",
              title: `Example: ${example.name}`,
              "aria-label": `Example: ${example.name}`,
              onclick: () => this.openExample(example),
            },
            el("img", { src: exampleUrl(example.file), alt: "", width: 64, height: 48 }),
          ),
        ),
      );
    }
    acceptDrops(byId("desk"), open);
  }

  #cameraButton(spec) {
    const open = () => this.attempt(photograph().then((file) => file && openFile(file)));
    return el(spec, { type: "button", onclick: open }, icon("camera"), "Camera");
  }

  #codeButton(kind) {
    return el(
      "button.quiet-button",
      { type: "button", onclick: () => this.showCode(kind, true) },
      icon("copy"),
      `Copy as ${kind}`,
    );
  }

  #listen() {
    addEventListener("hashchange", () => this.route());
    addEventListener("paste", (event) => {
      const files = filesOf(event.clipboardData);
      if (!files.length) return;
      event.preventDefault();
      if (this.view === "documents") return;
      if (this.view === "batch") this.batch.add(files);
      else this.openFiles(files);
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    // A file dropped beside a target must not replace the page.
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => event.preventDefault());
    byId("open-settings").addEventListener("click", () => this.settings.open());
    byId("open-history").addEventListener("click", () => this.history.open());
    byId("model").addEventListener("change", () => this.modelChosen());
    this.composer.element.addEventListener("input", () => this.showCode());
    this.composer.element.addEventListener("change", () => this.showCode());
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    }
  }

  /** Shows the view that the address names. */
  route() {
    const name = location.hash.slice(1);
    this.view = name in VIEWS ? name : "ask";
    document.body.dataset.view = this.view;
    document.title = `${VIEWS[this.view]} · PaliGemma`;
    for (const link of byId("views").querySelectorAll("a")) {
      if (link.hash === `#${this.view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    byId("desk").hidden = this.view === "batch" || this.view === "documents";
    byId("batch").hidden = this.view !== "batch";
    byId("documents").hidden = this.view !== "documents";
    if (this.view === "documents") this.documents.open();
    const isCompared = this.view === "compare";
    this.panes[1].element.hidden = !isCompared;
    if (isCompared && this.picture && this.panes[1].viewer.picture !== this.picture)
      this.panes[1].show(this.picture);
    for (const pane of this.panes) pane.head.hidden = !isCompared;
    byId("one-model").hidden = !(isCompared && this.models.length === 1);
    this.showCode();
  }

  async loadModels() {
    const select = byId("model");
    try {
      this.models = await listModels();
      byId("server-problem").hidden = true;
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      byId("server-problem").hidden = false;
      byId("server-problem-text").textContent = error.message;
      const again = byId("server-again");
      const needsKey = error.status === 401;
      again.textContent = needsKey ? "Open the settings" : "Try again";
      again.onclick = () => (needsKey ? this.settings.open() : this.loadModels());
      return;
    }
    const kept = stored.get("local", "model", null);
    const fill = (target, chosen) =>
      target.replaceChildren(
        ...this.models.map((model) =>
          el("option", { value: model.id, selected: model.id === chosen }, model.id),
        ),
      );
    const ids = this.models.map(({ id }) => id);
    const first = ids.includes(kept) ? kept : ids[0];
    fill(select, first);
    fill(this.panes[0].model, first);
    fill(this.panes[1].model, ids.find((id) => id !== first) ?? first);
    this.modelChosen();
    this.route();
  }

  modelChosen() {
    const { value } = byId("model");
    const model = this.models.find(({ id }) => id === value);
    stored.set("local", "model", value);
    this.panes[0].model.value = value;
    this.composer.setModel(model);
    this.batch.composer.setModel(model);
    byId("model-facts").textContent = model ? factsOf(model) : "";
    this.showCode();
  }

  // Pictures

  async attempt(opening) {
    this.problem.hidden = true;
    try {
      const picture = await opening;
      if (picture) this.show(picture);
    } catch (error) {
      this.problem.textContent = error.message;
      this.problem.hidden = false;
    }
  }

  openFiles(files) {
    if (files.length > 1) {
      location.hash = "#batch";
      this.batch.add(files);
      return null;
    }
    return this.attempt(openFile(files[0]));
  }

  async openExample(example) {
    await this.attempt(openExample(example));
    const { values, task } = this.composer;
    if (!values.labels) this.composer.set({ task, values: { labels: example.labels } });
  }

  show(picture) {
    if (this.picture?.file) URL.revokeObjectURL(this.picture.url);
    this.picture = picture;
    for (const pane of this.panes) pane.show(picture);
    byId("desk").classList.add("has-picture");
    byId("picture-name").textContent = picture.name;
    byId("picture-size").textContent = `${picture.width} × ${picture.height} px`;
    this.showCode();
  }

  // Questions

  async ask(question) {
    if (!this.picture) {
      this.problem.textContent = "Open a picture first, or take an example.";
      this.problem.hidden = false;
      byId("drop-examples").querySelector("button").focus();
      return;
    }
    const asked = this.view === "compare" ? this.panes : [this.panes[0]];
    this.composer.setBusy(true);
    this.showCode();
    await Promise.all(
      asked.map((pane) =>
        pane.run(
          question,
          this.settings.fields(
            question.prompt,
            this.view === "compare" ? pane.model.value : byId("model").value,
          ),
        ),
      ),
    );
    if (!this.panes.some((pane) => pane.busy)) this.composer.setBusy(false);
  }

  stop() {
    for (const pane of this.panes) pane.stop();
  }

  answered(pane, { question, answer, picture }) {
    const buttons = [pane.answer.copyButton()];
    if (answer.detections?.length && picture.file) {
      const save = async () =>
        download(
          `${picture.name.replace(/\.[^.]+$/, "")}-overlay.png`,
          await overlay(picture.file, visibleOf(pane)),
        );
      buttons.push(
        el("button.quiet-button", { type: "button", onclick: save }, icon("save"), "Save overlay"),
      );
    }
    pane.answer.addActions(...buttons);
    this.history.add({ question, answer, picture });
  }

  /** Shows an entry of the history, to be asked again while the server keeps its picture. */
  restore({ question, answer, picture }) {
    if (this.view === "batch" || this.view === "documents") location.hash = "#ask";
    this.show({ ...picture, file: null, url: picture.thumb ?? "" });
    this.composer.set(question);
    this.panes[0].answer.done(answer);
  }

  /** Shows a row of the batch with its picture. */
  async openRow(row, question) {
    location.hash = "#ask";
    await this.attempt(
      openFile(row.file, row.name).then((picture) => ({ ...picture, imageId: row.imageId })),
    );
    this.composer.set(question);
    const pane = this.panes[0];
    pane.answer.done(row.answer, row.ms);
    pane.answer.addActions(pane.answer.copyButton());
  }

  // Code

  /** Writes the question as a program would ask it, and copies it where that is wanted. */
  showCode(kind = this.code, copies = false) {
    this.code = kind;
    this.codeBox.hidden = !this.picture;
    if (!this.picture || (!this.codeBox.open && !copies)) return;
    const question = this.composer.question({ quietly: !copies });
    if (!question) return;
    const about = {
      fileName: this.picture.name,
      options: this.settings.fields(
        question.prompt,
        this.models.length > 1 ? byId("model").value : "",
      ),
      hasKey: Boolean(this.settings.key),
    };
    this.codeText.textContent = (kind === "curl" ? curl : pythonCode)(question, about);
    if (copies) copyText(this.codeText.textContent);
  }
}

const visibleOf = (pane) => {
  const visible = pane.answer.visible();
  return pane.answer.detections.filter((_, i) => visible[i]);
};

/** What is known of a model, in one line. */
function factsOf({ paligemma: facts = {} }) {
  const parts = [];
  if (facts.image_size_px) parts.push(`sees ${facts.image_size_px} × ${facts.image_size_px} px`);
  if (facts.num_parameters) {
    const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
    parts.push(`${short.format(facts.num_parameters)} parameters`);
  }
  if (facts.quant) parts.push(facts.quant);
  if (facts.adapter) parts.push(`adapter ${facts.adapter}`);
  return parts.join(" · ");
}

new Page();
