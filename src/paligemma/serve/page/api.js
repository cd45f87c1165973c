/** The server's native calls: models, questions with streamed answers, and errors as sentences. */

const BASE = new URL(".", document.baseURI);

/** Address of a call, absolute, so that it can be copied. */
export const address = (path) => new URL(path, BASE).href;

/** An error that has a sentence for the reader. */
export class ServerError extends Error {
  /** @param {{status?: number, code?: string, param?: string, retryAfter?: number}} [facts] */
  constructor(message, facts = {}) {
    super(message);
    Object.assign(this, { status: 0, code: null, param: null, retryAfter: null }, facts);
  }
}

let key = "";
/** The key that every call carries; "" is none. */
export function useKey(value) {
  key = value;
}

async function call(path, init = {}) {
  const headers = { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(address(path), { ...init, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. See whether it still runs, then ask again.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let body;
  try {
    body = (await response.json()).error;
  } catch {
    body = null;
  }
  const after = Number.parseFloat(response.headers.get("Retry-After"));
  return new ServerError(sentence(body?.message ?? "", response.status), {
    status: response.status,
    code: body?.code ?? null,
    param: body?.param ?? null,
    retryAfter: Number.isFinite(after) ? Math.min(Math.max(after, 0), 600) : null,
  });
}

/** The server's message as a sentence, or one for the status where it sent none. */
function sentence(message, status) {
  const text =
    message.trim() ||
    {
      401: "the server wants a key; enter it in the settings",
      413: "the picture is larger than the server takes; choose a smaller one",
      429: "the server has too many questions at once",
      503: "the server takes no questions at the moment; try again soon",
    }[status] ||
    `the server failed with status ${status}; its log says why`;
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** The models of the server: [{id, paligemma: {…}}]. */
export async function listModels() {
  return (await (await call("v1/models")).json()).data;
}

const post = async (path, fields) => {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(fields) })).json();
};

/** The index of the server: {index, num_pages, writable, …}. */
export const indexFacts = async () => (await call("v1/index")).json();

/** The best pages for a query: {hits: [{file, page, score, thumbnail, words, heat}], …}. */
export const searchPages = (fields) => post("v1/search", fields);

/** Puts files into the index: {added, faults, …}. */
export async function addPages(files) {
  const entries = files.map(async (file) => [file.name, await dataUrl(file)]);
  return post("v1/index", { files: Object.fromEntries(await Promise.all(entries)) });
}

const dataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ServerError(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });

/**
 * Asks a question. The picture travels only where the server does not keep it.
 * @param {{task: string, fields: Object<string, any>}} question path of /v1/ and its fields.
 * @param {{file: ?Blob, imageId: ?string}} picture its `imageId` is set to what the server says.
 * @param {{signal?: AbortSignal, onStart?: Function, onToken?: Function}} [listeners] with
 *   `onToken` the answer is streamed.
 * @returns {Promise<Object>} the whole answer.
 */
export async function ask(question, picture, { signal, onStart, onToken } = {}) {
  const send = async (withFile) => {
    const body = new FormData();
    if (withFile) body.append("image", picture.file, picture.name ?? "picture");
    else body.append("image_id", picture.imageId);
    for (const [name, value] of Object.entries({
      ...question.fields,
      ...(onToken ? { stream: true } : {}),
    })) {
      body.append(name, value);
    }
    const response = await call(`v1/${question.task}`, { method: "POST", body, signal });
    const streamed = response.headers.get("Content-Type")?.startsWith("text/event-stream");
    return streamed ? follow(response, { onStart, onToken }) : response.json();
  };
  let answer;
  if (!picture.imageId) answer = await send(true);
  else {
    try {
      answer = await send(false);
    } catch (error) {
      if (error.status !== 404 || error.code !== "image_not_found") throw error;
      picture.imageId = null;
      if (!picture.file) {
        throw new ServerError(
          "The server no longer keeps this picture, and the history has only a small copy. " +
            "Load the picture again.",
        );
      }
      answer = await send(true);
    }
  }
  picture.imageId = answer.image?.id ?? picture.imageId;
  return answer;
}

async function follow(response, { onStart, onToken }) {
  for await (const { event, data } of eventsOf(response.body)) {
    if (event === "start") onStart?.(data);
    else if (event === "token") onToken(data);
    else if (event === "done") return data;
    else if (event === "error") {
      throw new ServerError(sentence(data.error?.message ?? "", 500), {
        status: 500,
        code: data.error?.code,
      });
    }
  }
  throw new ServerError("The connection ended before the answer did. Ask again.");
}

/** Server-sent events of a body, one after another. */
export async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The connection broke off. Ask again.");
      }
      if (piece.done) return;
      buffer += piece.value.replaceAll("\r", "");
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n");
        const event = lines
          .find((line) => line.startsWith("event:"))
          ?.slice(6)
          .trim();
        const data = lines
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart());
        if (event && data.length) yield { event, data: JSON.parse(data.join("\n")) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
