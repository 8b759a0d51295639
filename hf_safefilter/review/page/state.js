/* What the page knows: the numbers of all rows, the threshold, the decisions, and the row that is open. */

const TOKEN = new URLSearchParams(location.search).get("review") || "";
const KEEP = "keep", DROP = "drop", MASK = "mask", UNSURE = "unsure", WITHDRAWN = "withdrawn";
const STRICTEST = [DROP, MASK, KEEP];

const state = {
  rows: 0,
  scores: new Float64Array(0),
  ascending: new Int32Array(0), // scored rows by score
  sorted: new Float64Array(0), // their scores
  first: null, // for each row the first one with the same id; null if all ids differ
  turns: new Int16Array(0),
  groups: {},
  decisions: new Map(), // first row of an id -> decisions that count, one a person
  reviewers: [],
  agreement: { rows: 0, agreed: 0, alpha: null },
  threshold: 0,
  start: 0,
  shown: new Int32Array(0), // rows of the list, in its order
  open: -1, // the row that is shown
  text: false,
  points: null,
};

const byId = (id) => document.getElementById(id);

/** A new element; texts become text nodes and are never read as markup. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

/** The JSON answer to a request; an error becomes a message on the page. */
async function ask(path, values) {
  const options = { headers: { "x-review-token": TOKEN } };
  if (values !== undefined) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(values);
  }
  let answer, body;
  try {
    answer = await fetch(`review/${path}`, options);
    body = answer.headers.get("content-type") === "application/json" ? await answer.json() : { error: await answer.text() };
  } catch {
    throw new Error("The server does not answer. Is the command still running? Nothing after the last mark was saved.");
  }
  if (!answer.ok) throw new Error(body.error);
  return body;
}

function alertUser(message) {
  byId("alert").textContent = message;
  byId("alert").hidden = !message;
}

function unpacked(text, kind) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new kind(bytes.buffer);
}

const number = (value) => value.toLocaleString("en");

function score(value) {
  if (value === null || !Number.isFinite(value)) return "none";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** The place in the scored rows, by score, of the first one that scores `value` or more. */
function placeOf(value) {
  let low = 0, high = state.sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (state.sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

const isKept = (row) => state.scores[row] < state.threshold; // false for a row without a score
const firstOf = (row) => (state.first === null ? row : state.first[row]);
const decisionsOn = (row) => state.decisions.get(firstOf(row)) || [];
const reviewer = () => byId("who").value.trim();
const mine = (row) => decisionsOn(row).find((decision) => decision.who === reviewer());

/** What several people's decisions come to: the strictest; "" where nobody has decided. */
function ruling(decisions) {
  return STRICTEST.find((word) => decisions.some((decision) => decision.decision === word)) || "";
}

function takeOverview(body) {
  state.rows = body.rows;
  state.scores = unpacked(body.scores, Float64Array);
  state.turns = unpacked(body.turns, Int16Array);
  state.first = body.first === null ? null : unpacked(body.first, Int32Array);
  state.groups = {};
  for (const [name, group] of Object.entries(body.groups)) {
    state.groups[name] = { names: group.names, codes: unpacked(group.codes, Uint16Array) };
  }
  const scored = Int32Array.from({ length: state.rows }, (_, row) => row).filter((row) => Number.isFinite(state.scores[row]));
  state.ascending = scored.sort((one, other) => state.scores[one] - state.scores[other] || one - other);
  state.sorted = Float64Array.from(state.ascending, (row) => state.scores[row]);
  state.threshold = state.start = body.threshold;
  state.column = body.column;
  state.log = body.log;
  state.decisions.clear();
  for (const [row, decisions] of Object.entries(body.decisions)) state.decisions.set(Number(row), decisions);
  takeState(body);
}

function takeState(body) {
  state.command = body.command;
  state.reviewers = body.reviewers;
  state.agreement = body.agreement;
}

/** The numbers of rows kept and dropped at the threshold, and where people decide otherwise. */
function outcome() {
  const dropped = state.sorted.length - placeOf(state.threshold);
  const unscored = state.rows - state.sorted.length;
  const result = { dropped, unscored, kept: state.sorted.length - dropped, rescued: 0, removed: 0, masked: 0 };
  if (!state.decisions.size) return result;
  const ruled = new Map();
  for (const [row, decisions] of state.decisions) {
    const word = ruling(decisions);
    if (word) ruled.set(row, word);
  }
  const copies = state.first === null ? ruled.keys() : state.first.keys();
  for (const row of copies) {
    const word = ruled.get(firstOf(row));
    if (word === KEEP && !isKept(row)) result.rescued++;
    if (word === DROP && isKept(row)) result.removed++;
    if (word === MASK) result.masked++;
  }
  return result;
}
