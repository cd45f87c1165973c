// One row at a time: its picture, its boxes or its text, and a decision sent to the server.
const at = (id) => document.getElementById(id);
const STEP = 1 / 200;
// Share of the picture's height that the name of a box takes above it.
const PLATE = 0.05;
let rows = [], place = 0, record = null, objects = [], chosen = -1, drawn = null, busy = false;

async function json(path, body) {
  const how = body === undefined ? {} : {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
  };
  const reply = await fetch(path, how);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error);
  return found;
}

const hasBoxes = () => record !== null && record.detections !== undefined;
const valid = (one) => one.box_yxyx[0] < one.box_yxyx[2] && one.box_yxyx[1] < one.box_yxyx[3];
const words = ({label, score}) => (score == null ? label : `${label} ${score.toFixed(2)}`);
const asWritten = () => (record.detections ?? []).filter(valid).map((one) => (
  {label: one.label ?? "object", box_yxyx: [...one.box_yxyx], score: one.score}));

function defaultLabel() {
  const asked = record.prompt.replace(/^\w+ /, "").split(";").map((one) => one.trim());
  return objects[chosen]?.label ?? asked[0] ?? "object";
}

async function show(next) {
  if (!rows.length) return;
  place = (next + rows.length) % rows.length;
  const row = rows[place].row;
  const found = await json(`rows/${row}`);
  record = found.record;
  objects = found.decision?.objects ?? asWritten();
  at("text").value = found.decision?.text ?? record.text;
  chosen = objects.length ? 0 : -1;
  at("stage").hidden = false;
  at("unread").hidden = true;
  at("picture").src = `pictures/${row}`;
  at("prompt").textContent = `${record.prompt} · ${record.image}`;
  at("text-field").hidden = hasBoxes();
  at("said").textContent = "";
  draw();
}

function draw() {
  const box = at("boxes");
  box.replaceChildren();
  box.setAttribute("viewBox", "0 0 1 1");
  box.setAttribute("preserveAspectRatio", "none");
  const list = at("objects"), names = at("names");
  list.replaceChildren();
  names.replaceChildren();
  objects.forEach((one, number) => {
    const [y0, x0, y1, x1] = one.box_yxyx;
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const sides = {x: x0, y: y0, width: x1 - x0, height: y1 - y0};
    for (const [name, value] of Object.entries(sides)) rect.setAttribute(name, value);
    if (number === chosen) rect.setAttribute("class", "chosen");
    box.append(rect);
    const item = document.createElement("li");
    item.textContent = words(one);
    if (number === chosen) item.className = "chosen";
    const name = document.createElement("span");
    name.textContent = words(one);
    name.classList.toggle("chosen", number === chosen);
    name.classList.toggle("above", y0 > PLATE);
    const percent = (share) => `${100 * share}%`;
    Object.assign(name.style, {left: percent(x0), top: percent(y0), maxWidth: percent(1 - x0)});
    names.append(name);
    item.addEventListener("click", () => choose(number));
    list.append(item);
  });
  at("label-field").hidden = !hasBoxes() || chosen < 0;
  at("label").value = objects[chosen]?.label ?? "";
  const row = rows[place];
  at("place").textContent =
    `${place + 1} of ${rows.length} · confidence ${row.confidence.toFixed(2)} · ${row.state}`;
}

function choose(number) {
  chosen = objects.length ? (number + objects.length) % objects.length : -1;
  draw();
}

function change(sides) {
  if (chosen < 0) return;
  const box = objects[chosen].box_yxyx.map((value, k) => Math.min(1, Math.max(0, value + sides[k])));
  if (box[0] < box[2] && box[1] < box[3]) objects[chosen] = {...objects[chosen], box_yxyx: box};
  draw();
}

function add(box_yxyx) {
  objects.push({label: defaultLabel(), box_yxyx});
  choose(objects.length - 1);
}

async function decide(state) {
  if (busy) return;
  busy = true;
  try {
    const kept = objects.map(({label, box_yxyx}) => ({label, box_yxyx}));
    const answer = hasBoxes() ? {objects: kept} : {text: at("text").value};
    await json(`decisions/${rows[place].row}`, {state, ...answer});
    rows[place].state = state;
    const open = rows.findIndex((one, k) => k > place && one.state === "open");
    const any = open >= 0 ? open : rows.findIndex((one) => one.state === "open");
    if (any >= 0) await show(any);
    else { draw(); at("place").textContent = "all rows are decided; close the page and stop the program"; }
  } catch (error) {
    at("said").textContent = error.message;
  } finally {
    busy = false;
  }
}

function edit() {
  const field = hasBoxes() ? at("label") : at("text");
  if (hasBoxes() && chosen < 0) return;
  field.focus();
  field.select();
}

const KEYS = {
  a: () => decide("accepted"), x: () => decide("rejected"),
  n: () => show(place + 1), p: () => show(place - 1),
  t: () => choose(chosen + 1), T: () => choose(chosen - 1),
  d: () => { if (chosen >= 0) { objects.splice(chosen, 1); choose(chosen); } },
  e: edit, b: () => { if (hasBoxes()) add([0.4, 0.4, 0.6, 0.6]); },
  u: () => { objects = asWritten(); at("text").value = record.text; choose(0); },
};
KEYS.Delete = KEYS.d;
const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || record === null) return;
  if (event.target.matches("textarea, input")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "label")) {
      event.target.blur();
      at("stage").focus();
    }
    return;
  }
  const arrow = ARROWS[event.key];
  if (arrow && hasBoxes()) {
    const [dy, dx] = arrow.map((value) => value * STEP);
    change(event.shiftKey ? [0, 0, dy, dx] : [dy, dx, dy, dx]);
  } else if (KEYS[event.key]) KEYS[event.key]();
  else return;
  event.preventDefault();
});

at("label").addEventListener("input", (event) => {
  if (chosen >= 0) objects[chosen] = {...objects[chosen], label: event.target.value};
  for (const id of ["objects", "names"]) at(id).children[chosen].textContent = event.target.value;
});
for (const [id, key] of Object.entries({accept: "a", reject: "x", before: "p", after: "n"})) {
  at(id).addEventListener("click", KEYS[key]);
}

at("picture").addEventListener("error", async () => {
  const row = rows[place].row;
  let why = "the server gave no picture";
  try { await json(`pictures/${row}`); } catch (error) { why = error.message; }
  if (rows[place].row !== row) return;
  at("stage").hidden = true;
  at("unread").hidden = false;
  at("unread").textContent = `The picture of this row cannot be shown: ${why}`;
});

function spot(event) {
  const frame = at("boxes").getBoundingClientRect();
  return [(event.clientY - frame.top) / frame.height, (event.clientX - frame.left) / frame.width]
    .map((value) => Math.min(1, Math.max(0, value)));
}
at("boxes").addEventListener("pointerdown", (event) => { if (hasBoxes()) drawn = spot(event); });
at("boxes").addEventListener("pointerup", (event) => {
  if (drawn === null) return;
  const [a, b] = [drawn, spot(event)];
  drawn = null;
  const box = [0, 1].map((k) => Math.min(a[k], b[k])).concat([0, 1].map((k) => Math.max(a[k], b[k])));
  if (box[2] - box[0] > STEP && box[3] - box[1] > STEP) add(box);
  else {
    const hit = objects.findIndex(({box_yxyx: [y0, x0, y1, x1]}) => (
      y0 <= a[0] && a[0] <= y1 && x0 <= a[1] && a[1] <= x1));
    if (hit >= 0) choose(hit);
  }
});

const found = await json("rows");
rows = found.rows;
const first = rows.findIndex((one) => one.state === "open");
await show(Math.max(0, first));
