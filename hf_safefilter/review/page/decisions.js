/* Decisions: each is sent at once, and the next row opens when it is on the disk. */

const done = []; // what was decided here: the row, and my decision before, for undo
let sending = Promise.resolve();
let deciding = false;

const KEYS = [
  ["k", "Keep", () => decide(KEEP)],
  ["d", "Drop", () => decide(DROP)],
  ["m", "Mask turn", () => maskAim()],
  ["u", "Unsure", () => decide(UNSURE)],
  ["n", "Note", () => openNote()],
  ["r", "Reference", () => toggleReference()],
  ["z", "Undo", () => undo()],
  ["ArrowUp", "Previous", () => step(-1)],
  ["ArrowDown", "Next", () => step(1)],
  ["t", "Text", () => toggleText()],
  ["w", "Words", () => toggleWords()],
  ["/", "Search", () => byId("search").focus()],
];
const FAR = { PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }; // rows to go by
const TEACHING = { l: () => askForTen(), s: () => scoreAgain() }; // these have buttons of their own
const ALSO = { ArrowLeft: "ArrowUp", ArrowRight: "ArrowDown", p: "ArrowUp", j: "ArrowDown" };
const NAMES = { ArrowUp: "↑", ArrowDown: "↓" };

/** Send a decision; resolves to whether it is on the disk. */
function send(row, values) {
  const who = reviewer();
  if (!who) {
    alertUser("Write your name into the field Reviewer first: each decision says who has made it.");
    byId("who").focus();
    return Promise.resolve(false);
  }
  const work = async () => {
    try {
      const body = await ask(`row/${row}/decision`, { who, threshold: state.threshold, ...values });
      state.decisions.set(body.place, body.decisions);
      takeState(body);
      alertUser("");
      return true;
    } catch (error) {
      alertUser(`Not saved. ${error.message}`);
      return false;
    }
  };
  sending = sending.then(work); // one after the other, in the order of the keys
  return sending;
}

/** Decide on the open row, and open the next one. A key that comes before that row is seen does nothing. */
async function decide(decision, { turns = [], note = mine(state.open)?.note || "", reference = null, next = true } = {}) {
  const row = state.open;
  if (deciding || rowPanel.body?.place !== row || waitForScores()) return;
  deciding = true;
  try {
    const before = mine(row);
    const marked = reference ?? (before?.decision === decision && before.reference); // the same word once more keeps the mark
    if (!(await send(row, { decision, turns, note, reference: marked }))) return;
    done.push({ row, before });
    teaching.since++;
    showTeaching();
    afterDecision(row);
    if (next && state.open === row && !byId("note")) await step(1); // who writes a note on this row stays with it
  } finally {
    deciding = false;
  }
}

function afterDecision(row) {
  showOutcome();
  showProgress();
  rowsList.draw();
  if (firstOf(state.open) === firstOf(row)) {
    rowPanel.standing();
    rowPanel.marks();
  }
}

async function undo() {
  if (waitForScores()) return;
  const last = done.pop();
  if (!last) return;
  const before = last.before || { decision: WITHDRAWN, turns: [], note: "", reference: false };
  const { decision, turns, note, reference } = before;
  if (!(await send(last.row, { decision, turns, note, reference }))) {
    done.push(last);
    return;
  }
  afterDecision(last.row);
  openRow(last.row);
}

function maskAim() {
  const turn = rowPanel.body ? rowPanel.aim() : -1;
  if (turn < 0) alertUser("Nothing of this row was read, so there is no turn to mask. Drop it instead.");
  else decide(MASK, { turns: [...new Set([...(mine(state.open)?.turns || []), turn])] });
}

/** Mask a turn, or no longer, and stay at the row. */
function toggleTurn(turn) {
  const turns = new Set(mine(state.open)?.turns || []);
  if (!turns.delete(turn)) turns.add(turn);
  if (turns.size) decide(MASK, { turns: [...turns], next: false });
  else decide(WITHDRAWN, { note: "", next: false });
}

async function step(by) {
  const at = state.shown.indexOf(state.open);
  const last = state.shown.length - 1;
  const next = at < 0 ? 0 : Math.abs(by) === 1 ? at + by : Math.max(0, Math.min(last, at + by));
  if (next >= 0 && next <= last) await openRow(state.shown[next]);
}

function toggleText() {
  alertUser("");
  state.text = !state.text;
  showTextToggle();
  if (state.open >= 0) openRow(state.open);
}

function showTextToggle() {
  const button = byId("text-toggle");
  button.setAttribute("aria-pressed", state.text);
  button.replaceChildren(el("kbd", {}, "T"), state.text ? " Hide text" : " Show text");
}

/** A field for a note on the open row; Enter saves it, Escape does not. It stays while the row is fetched or saved. */
function openNote() {
  if (state.open < 0 || byId("note")) return;
  const row = state.open;
  const field = el("textarea", { id: "note", maxlength: "4000", rows: "3", "aria-label": "Note" });
  const box = el("div", { class: "note-box", "data-row": row }, field, el("small", {}, "Enter saves, Shift+Enter makes a new line, Escape leaves. A row without a decision becomes unsure."));
  field.value = mine(row)?.note || "";
  field.addEventListener("keydown", async (event) => {
    event.stopPropagation();
    if (event.key === "Escape") box.remove();
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    await sending; // a decision of just before is the one that the note goes to
    if (deciding || rowPanel.body?.place !== row || waitForScores()) return;
    const before = mine(row);
    box.remove();
    await decide(before?.decision || UNSURE, { turns: before?.turns || [], note: field.value, next: false });
    if (rowPanel.body) rowPanel.facts(rowPanel.body);
  });
  if (byId("standing")) byId("standing").after(box);
  else byId("row").append(box);
  field.focus();
}

function showProgress() {
  let own = 0;
  for (const decisions of state.decisions.values()) own += decisions.some((decision) => decision.who === reviewer());
  const decided = [...state.decisions.values()].filter((decisions) => decisions.length).length;
  byId("progress-bar").value = decided / state.rows;
  byId("progress-text").textContent = `${number(decided)} of ${number(state.rows)} decided, ${number(own)} by you`;
}

function watchKeys() {
  const actions = new Map(KEYS.map(([key, , action]) => [key, action]));
  byId("actions").replaceChildren(...KEYS.map(([key, name, action]) =>
    el("button", { type: "button", tabindex: "-1", class: `action ${name.split(" ")[0].toLowerCase()}`, onclick: action }, el("kbd", {}, NAMES[key] || key.toUpperCase()), name)));
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && writing) event.target.blur();
    if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const far = key in FAR ? () => step(FAR[key]) : null;
    const action = actions.get(ALSO[key] || key) || TEACHING[key] || far;
    if (!action || (event.repeat && !far && !key.startsWith("Arrow"))) return; // a key that is held down decides once
    event.preventDefault();
    action();
  });
  byId("text-toggle").addEventListener("click", toggleText);
  byId("who").addEventListener("change", () => {
    showProgress();
    refreshList({ keep: true });
    if (state.open >= 0) openRow(state.open);
    byId("who").blur();
  });
}
