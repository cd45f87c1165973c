/** A picture with an answer about it: asks, waits where the server is busy, shows what comes. */

import { Answer } from "./answer.js";
import { ask, ServerError } from "./api.js";
import { bringIntoView, el, wait } from "./dom.js";
import { Viewer } from "./viewer.js";

const MAX_TRIES = 4;
const DEFAULT_WAIT_S = 2; // where a busy server names no time

export class Pane {
  /** @param {{onDone: Function, onSettings: Function}} listeners */
  constructor({ onDone, onSettings }) {
    this.onDone = onDone;
    this.onSettings = onSettings;
    const light = (index) => this.light(index);
    this.viewer = new Viewer({
      onLight: light,
      onView: (view) => this.twin?.viewer.setView({ ...view }),
    });
    this.answer = new Answer(this.viewer);
    this.answer.onLight = light;
    this.model = el("select", { "aria-label": "Model" });
    this.head = el("div.pane-head", {}, this.model);
    this.element = el("article.pane", {}, this.head, this.viewer.element, this.answer.element);
    this.lit = null;
  }

  light(index) {
    if (index === this.lit) return;
    this.lit = index;
    this.viewer.light(index);
    this.answer.light(index);
  }

  show(picture) {
    this.stop();
    this.answer.clear();
    this.viewer.show(picture);
  }

  get busy() {
    return Boolean(this.controller);
  }

  stop() {
    this.controller?.abort();
  }

  /**
   * Asks a question of the picture that is shown.
   * @param {{prompt: string, call: string, fields: Object}} question
   * @param {Object<string, any>} options fields for the model's way of answering.
   */
  async run(question, options) {
    this.stop();
    const controller = (this.controller = new AbortController());
    const { picture } = this.viewer;
    const began = performance.now();
    try {
      const answer = await this.#tries(question, options, picture, controller.signal);
      const ms = performance.now() - began;
      this.answer.done(answer, ms);
      bringIntoView(this.answer.element);
      this.onDone(this, { question, options, answer, ms, picture });
    } catch (error) {
      if (controller.signal.aborted) {
        if (this.controller === controller) this.answer.stopped();
      } else this.#fail(error);
    } finally {
      if (this.controller === controller) this.controller = null;
    }
  }

  async #tries(question, options, picture, signal) {
    for (let tries = 1; ; tries++) {
      this.answer.start();
      bringIntoView(this.answer.element);
      try {
        return await ask(
          { task: question.call, fields: { ...question.fields, ...options } },
          picture,
          {
            signal,
            onStart: (start) => this.answer.began(start),
            onToken: (token) => this.answer.token(token),
          },
        );
      } catch (error) {
        const isBusy = error.status === 429 || error.status === 503;
        if (!isBusy || tries === MAX_TRIES) throw error;
        await this.#countDown(error, signal);
      }
    }
  }

  /** Waits as long as the server asks, with the seconds on show and a way to stop waiting. */
  async #countDown(error, signal) {
    const seconds = Math.ceil(error.retryAfter ?? DEFAULT_WAIT_S);
    let now;
    const pressed = new Promise((resolve) => (now = resolve));
    const left = el("span.countdown", { "aria-hidden": "true" });
    this.answer.fail(
      error.message,
      el("button", { type: "button", onclick: () => now(true) }, "Ask now"),
      left,
    );
    left.before(el("span.off-screen", {}, `Asking again in ${seconds} seconds.`));
    for (let s = seconds; s > 0; s--) {
      left.textContent = `Asking again in ${s} s`;
      if (await Promise.race([wait(1000, signal), pressed])) return;
    }
  }

  #fail(error) {
    if (!(error instanceof ServerError)) console.error(error);
    const message =
      error instanceof ServerError
        ? error.message
        : "The page failed to show this answer. Load it again.";
    const settings = el(
      "button",
      { type: "button", onclick: this.onSettings },
      "Open the settings",
    );
    this.answer.fail(message, ...(error.status === 401 ? [settings] : []));
    bringIntoView(this.answer.element);
  }
}
