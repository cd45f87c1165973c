/** What holds for every question: key, ways of answering, theme. Kept in this browser alone. */

import { useKey } from "./api.js";
import { el, iconButton, labelled, stored } from "./dom.js";
import { findsObjects } from "./composer.js";

const DEFAULTS = { temperature: "", maxNewTokens: "", maxOverlap: "", constrain: false };

export class Settings {
  /** @param {() => void} onKey the key has changed, so that the models are asked for again. */
  constructor(onKey) {
    this.values = { ...DEFAULTS, ...stored.get("local", "settings", {}) };
    this.key = stored.get("session", "key", "");
    useKey(this.key);
    this.dialog = document.getElementById("settings");
    const key = el("input", {
      type: "password",
      value: this.key,
      autocomplete: "off",
      placeholder: "none",
      onchange: () => {
        this.key = key.value.trim();
        stored.set("session", "key", this.key || undefined);
        useKey(this.key);
        onKey();
      },
    });
    const number = (name, attributes) =>
      el("input", {
        type: "number",
        value: this.values[name],
        oninput: (event) => this.#set(name, event.target.validity.valid ? event.target.value : ""),
        ...attributes,
      });
    const constrain = el("input", {
      type: "checkbox",
      checked: this.values.constrain,
      onchange: () => this.#set("constrain", constrain.checked),
    });
    this.dialog.append(
      el(
        "div.dialog-head",
        {},
        el("h2", { id: "settings-title" }, "Settings"),
        iconButton("close", "Close", () => this.dialog.close()),
      ),
      el(
        "form",
        { method: "dialog" },
        labelled(
          "Key of the server",
          key,
          "Only where the server asks for one. It is forgotten with this tab.",
        ),
      ),
      el(
        "div.pair",
        {},
        labelled(
          "Temperature",
          number("temperature", { min: 0, max: 10, step: 0.1, placeholder: "0" }),
          "0 takes the likeliest word each time.",
        ),
        labelled(
          "Most tokens",
          number("maxNewTokens", { min: 1, max: 4096, step: 1, placeholder: "default" }),
          "Where an answer is cut.",
        ),
      ),
      labelled(
        "Overlap from which one of two boxes is dropped",
        number("maxOverlap", { min: 0, max: 1, step: 0.05, placeholder: "none is dropped" }),
        "Of one thing found twice the likelier box stays. 0.5 suits most pictures.",
      ),
      el(
        "label.check",
        {},
        constrain,
        el(
          "span",
          {},
          "Only well-formed objects",
          el("small", {}, "A grammar keeps detect and segment to the labels that were asked for."),
        ),
      ),
      this.#themes(),
    );
  }

  open() {
    this.dialog.showModal();
  }

  /** Fields that the settings add to a question. */
  fields(prompt, model) {
    const { temperature, maxNewTokens, maxOverlap, constrain } = this.values;
    const finds = findsObjects(prompt);
    return {
      ...(model && { model }),
      ...(Number(temperature) > 0 && { temperature: Number(temperature) }),
      ...(maxNewTokens !== "" && { max_new_tokens: Number(maxNewTokens) }),
      ...(finds && maxOverlap !== "" && { max_overlap: Number(maxOverlap) }),
      ...(finds && constrain && { constrain: true }),
    };
  }

  #set(name, value) {
    this.values[name] = value;
    stored.set("local", "settings", this.values);
  }

  #themes() {
    const now = document.documentElement.dataset.theme ?? "system";
    const choose = (theme) => {
      if (theme === "system") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = theme;
      // theme.js reads the bare word.
      try {
        localStorage.setItem("paligemma.theme", theme);
      } catch {
        // It then lasts as long as the page.
      }
    };
    const radios = ["system", "light", "dark"].map((theme) =>
      el(
        "label.chip",
        {},
        el("input", {
          type: "radio",
          name: "theme",
          value: theme,
          checked: theme === now,
          onchange: () => choose(theme),
        }),
        el("span", {}, theme[0].toUpperCase() + theme.slice(1)),
      ),
    );
    return el("fieldset.chips", {}, el("legend", {}, "Colours"), ...radios);
  }
}
