/** What is asked: a task, its fields, and the prompt that they become. */

import { el, freshId, icon, labelled, stored } from "./dom.js";

const LANGUAGES =
  "en ar bn cs da de el es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt ro ru sv sw te th tr uk vi zh";
const MAX_PROMPT_CHARS = 10_000;

const oneLine = (text) => text.trim().replaceAll(/\s+/g, " ");
const labelsOf = (text) => text.split(/[;\n]/).map(oneLine).filter(Boolean);

/**
 * The tasks: `fields` builds the inputs, `prompt` is what the model is sent, as
 * `paligemma.processing.prompts` writes it, `call` is the server's path with its fields.
 */
export const TASKS = {
  caption: {
    name: "Caption",
    icon: "caption",
    fields: ["style", "lang"],
    prompt: ({ style, lang }) => `${style} ${lang}`,
    call: ({ style, lang }) => ["caption", { style, lang }],
  },
  answer: {
    name: "Ask",
    icon: "ask",
    fields: ["question", "lang"],
    needs: "question",
    prompt: ({ question, lang }) => `answer ${lang} ${question.trim()}`,
    call: ({ question, lang }) => ["answer", { question: question.trim(), lang }],
  },
  read: { name: "Read", icon: "read", fields: [], prompt: () => "ocr", call: () => ["read", {}] },
  detect: {
    name: "Detect",
    icon: "detect",
    fields: ["labels"],
    needs: "labels",
    prompt: ({ labels }) => `detect ${labelsOf(labels).join(" ; ")}`,
    call: ({ labels }) => ["detect", { labels: labelsOf(labels).join(" ; ") }],
  },
  segment: {
    name: "Segment",
    icon: "segment",
    fields: ["labels"],
    needs: "labels",
    prompt: ({ labels }) => `segment ${labelsOf(labels).join(" ; ")}`,
    call: ({ labels }) => ["segment", { labels: labelsOf(labels).join(" ; ") }],
  },
  ask: {
    name: "Prompt",
    icon: "prompt",
    fields: ["prompt"],
    needs: "prompt",
    prompt: ({ prompt }) => prompt,
    call: ({ prompt }) => ["ask", { prompt }],
  },
};

const MISSING = {
  question: "Write a question first.",
  labels: "Name at least one thing to look for.",
  prompt: "Write a prompt first.",
};

/** Whether an answer to this prompt may hold boxes. */
export const findsObjects = (prompt) => /^\s*(detect|segment)\s/.test(prompt);

export class Composer {
  /**
   * @param {{name: string, submit: string, onSubmit: Function, onStop: Function}} options `name`
   *   keeps the fields of several composers apart in the browser's storage.
   */
  constructor({ name, submit, onSubmit, onStop }) {
    this.name = name;
    this.task = "detect";
    this.values = {
      style: "caption",
      lang: "en",
      question: "",
      labels: "",
      prompt: "",
      ...stored.get("local", `fields.${name}`, {}),
    };
    const kept = stored.get("local", `task.${name}`, "detect");
    if (kept in TASKS) this.task = kept;
    const group = freshId("task");
    this.radios = Object.entries(TASKS).map(([task, { name: label, icon: drawing }]) => {
      const radio = el("input", {
        type: "radio",
        name: group,
        value: task,
        checked: task === this.task,
        onchange: () => this.choose(task),
      });
      return el("label.chip", {}, radio, icon(drawing), el("span", {}, label));
    });
    this.fields = el("div.task-fields");
    this.sent = el("code");
    this.note = el("p.note", { hidden: true });
    this.problem = el("p.problem", { role: "alert", hidden: true, id: freshId("problem") });
    this.submit = el("button.primary", { type: "submit" }, submit);
    this.stop = el(
      "button",
      { type: "button", hidden: true, onclick: onStop },
      icon("stop"),
      "Stop",
    );
    this.actions = el("div.actions", {}, this.submit, this.stop);
    this.element = el(
      "form.composer.card",
      {
        noValidate: true,
        "aria-label": "Question",
        onsubmit: (event) => {
          event.preventDefault();
          const question = this.question();
          if (question) onSubmit(question);
        },
      },
      el("fieldset.chips", {}, el("legend.off-screen", {}, "Task"), ...this.radios),
      this.fields,
      this.problem,
      el("p.sends", {}, el("span", {}, "The model is sent "), this.sent),
      this.note,
      this.actions,
    );
    this.choose(this.task);
  }

  choose(task) {
    this.task = task;
    stored.set("local", `task.${this.name}`, task);
    for (const chip of this.radios) chip.firstChild.checked = chip.firstChild.value === task;
    const { fields, needs } = TASKS[task];
    this.fields.replaceChildren(
      ...fields.map((name) => {
        const field = this.#field(name);
        field.classList.toggle("wide", name === needs);
        return field;
      }),
    );
    this.#changed();
  }

  /** Fills in a question that was asked before. */
  set({ task, values }) {
    Object.assign(this.values, values);
    this.choose(task in TASKS ? task : "ask");
  }

  /** Shows that the chosen model may not be able to do something; "" takes it back. */
  setModel(facts) {
    this.model = facts;
    this.#changed();
  }

  setBusy(busy) {
    this.submit.disabled = busy;
    this.stop.hidden = !busy;
  }

  /**
   * The question as it stands; null, with a sentence under the fields, where something is missing.
   * @param {{quietly?: boolean}} [how] quietly says nothing of what is missing.
   * @returns {?{task: string, values: Object, prompt: string, call: string, fields: Object}}
   */
  question({ quietly = false } = {}) {
    const task = TASKS[this.task];
    const prompt = task.prompt(this.values);
    let problem = "";
    if (this.#isEmpty()) problem = MISSING[task.needs];
    else if (prompt.length > MAX_PROMPT_CHARS) {
      const length = prompt.length.toLocaleString("en");
      problem = `A prompt may have 10,000 characters, this one has ${length}. Shorten it.`;
    }
    if (!quietly) this.#problem(problem);
    if (problem) {
      if (!quietly) this.fields.querySelector("input, textarea")?.focus();
      return null;
    }
    const [call, fields] = task.call(this.values);
    return { task: this.task, values: { ...this.values }, prompt, call, fields };
  }

  /** Whether the field that the task needs holds nothing. */
  #isEmpty() {
    const { needs } = TASKS[this.task];
    return Boolean(needs) && !oneLine(this.values[needs].replaceAll(";", " "));
  }

  #problem(text) {
    this.problem.textContent = text;
    this.problem.hidden = !text;
    const field = this.fields.querySelector("input, textarea");
    if (text) field?.setAttribute("aria-describedby", this.problem.id);
    else field?.removeAttribute("aria-describedby");
    field?.setAttribute("aria-invalid", String(Boolean(text)));
  }

  #changed() {
    this.#problem("");
    const prompt = TASKS[this.task].prompt(this.values);
    this.sent.textContent = `${prompt.trim()}${this.#isEmpty() ? " …" : ""}`;
    const facts = this.model?.paligemma ?? {};
    let note = "";
    if (this.task === "segment" && facts.has_masks === false)
      note = "This model has no mask decoder: it answers with boxes alone.";
    this.note.textContent = note;
    this.note.hidden = !note;
    stored.set("local", `fields.${this.name}`, this.values);
  }

  #field(name) {
    const set = (event) => {
      this.values[name] = event.target.value;
      this.#changed();
    };
    const value = this.values[name];
    if (name === "style") {
      const names = { caption: "A sentence", cap: "Short", describe: "Longer" };
      const options = Object.entries(names).map(([style, text]) =>
        el("option", { value: style, selected: style === value }, text),
      );
      return labelled("Length", el("select", { onchange: set }, ...options));
    }
    if (name === "lang") {
      const options = LANGUAGES.split(" ").map((code) =>
        el("option", { value: code, selected: code === value }, languageName(code)),
      );
      return labelled("Language", el("select", { onchange: set }, ...options));
    }
    if (name === "prompt") {
      const onkeydown = (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.element.requestSubmit();
      };
      return labelled(
        "Prompt, word for word",
        el("textarea", {
          value,
          rows: 2,
          oninput: set,
          onkeydown,
          placeholder: "caption en",
          spellcheck: false,
        }),
      );
    }
    if (name === "labels") {
      const field = el("input", {
        value,
        oninput: set,
        placeholder: "star ; heart ; digit",
        autocomplete: "off",
        spellcheck: false,
      });
      return labelled("Things to look for", field, "Separate several with a semicolon.");
    }
    return labelled(
      "Question",
      el("input", {
        value,
        oninput: set,
        placeholder: "what color is the star?",
        autocomplete: "off",
      }),
    );
  }
}

function languageName(code) {
  try {
    return new Intl.DisplayNames(["en"], { type: "language" }).of(code) ?? code;
  } catch {
    return code;
  }
}
