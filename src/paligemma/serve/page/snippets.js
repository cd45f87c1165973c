/** The question on show as a command and as Python, ready to paste. */

import { address } from "./api.js";

const shell = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;
// In a form, curl gives ; and , of a file's name a meaning, unless the name is quoted.
const formFile = (name) => (/[;,"\\]/.test(name) ? `"${name.replaceAll(/["\\]/g, "\\$&")}"` : name);
const python = (value) => {
  if (typeof value === "boolean") return value ? "True" : "False";
  return typeof value === "number" ? String(value) : JSON.stringify(value);
};

/** Method and positional arguments of the client for each call. */
const METHODS = {
  caption: () => [[], ["lang", "style"]],
  answer: ({ question }) => [[question], ["lang"]],
  read: () => [[], []],
  detect: ({ labels }) => [[labels], []],
  segment: ({ labels }) => [[labels], []],
  ask: ({ prompt }) => [[prompt], []],
};
const DEFAULTS = { lang: "en", style: "caption" };

/**
 * @param {{call: string, fields: Object}} question
 * @param {{fileName: string, options: Object<string, any>, hasKey: boolean}} about
 */
export function curl({ call, fields }, { fileName, options, hasKey }) {
  const parts = [`curl ${shell(address(`v1/${call}`))}`];
  if (hasKey) parts.push('-H "Authorization: Bearer $PALIGEMMA_KEY"');
  parts.push(`-F ${shell(`image=@${formFile(fileName)}`)}`);
  // --form-string takes a value as it is, also where it begins with @ or <.
  for (const [name, value] of Object.entries({ ...fields, ...options }))
    parts.push(`--form-string ${shell(`${name}=${value}`)}`);
  return parts.join(" \\\n  ");
}

/** The same with the package's client, whose methods are those of a local model. */
export function pythonCode({ call, fields }, { fileName, options, hasKey }) {
  const [given, named] = METHODS[call](fields);
  const keywords = named
    .filter((name) => fields[name] !== DEFAULTS[name])
    .map((name) => [name, fields[name]]);
  const { model, ...others } = options;
  const all = [
    python(fileName),
    ...given.map(python),
    ...[...keywords, ...Object.entries(others)].map(([name, value]) => `${name}=${python(value)}`),
  ];
  const client = [
    python(address("")),
    ...(hasKey ? ['api_key=os.environ["PALIGEMMA_KEY"]'] : []),
    ...(model ? [`model=${python(model)}`] : []),
  ];
  return [
    ...(hasKey ? ["import os", ""] : []),
    "import paligemma",
    "",
    `client = paligemma.Client(${client.join(", ")})`,
    `answer = client.${call}(${all.join(", ")})`,
    "print(answer)",
  ].join("\n");
}
