/* The list of rows: filtered and ordered here, drawn only where it is in sight. */

const LINE = 34; // pixels, as in page.css
const SORTS = {
  near: "nearest to the threshold",
  high: "highest score first",
  low: "lowest score first",
  order: "order of the file",
  span: "by deciding turn",
};
const STATES = {
  all: "all rows",
  asked: "asked for: their labels teach most",
  open: "not decided by me",
  mine: "decided by me",
  any: "decided by anybody",
  overruled: "decided against the threshold",
  differ: "reviewers differ",
  kept: "kept at the threshold",
  dropped: "dropped at the threshold",
  unscored: "without a score",
};
const MARKS = { [KEEP]: "✓", [DROP]: "✕", [MASK]: "▒", [UNSURE]: "?" };

let found = null; // rows that the search found, as a flag for each row; null without a search

const rowsList = {
  /** Rows in the order that is asked for, before filters. */
  ordered() {
    const unscored = () => Int32Array.from({ length: state.rows }, (_, row) => row).filter((row) => !Number.isFinite(state.scores[row]));
    const falling = () => Int32Array.from(state.ascending).reverse();
    const kind = byId("sort").value;
    if (kind === "order") return Int32Array.from({ length: state.rows }, (_, row) => row);
    if (kind === "low") return joined(state.ascending, unscored());
    if (kind === "high") return joined(falling(), unscored());
    if (kind === "span") return joined(falling().sort((one, other) => state.turns[one] - state.turns[other]), unscored());
    return joined(nearestFirst(), unscored());
  },

  /** Whether a row passes the filters. */
  passes() {
    const [name, code] = JSON.parse(byId("group").value || "[]");
    const codes = name === undefined ? null : state.groups[name].codes;
    const inState = stateTest(byId("state").value);
    return (row) => (codes === null || codes[row] === code) && (found === null || found[row] === 1) && inState(row);
  },

  draw() {
    const box = byId("rows"), inner = byId("rows-inner");
    inner.style.height = `${state.shown.length * LINE}px`;
    const from = Math.max(0, Math.floor(box.scrollTop / LINE) - 4);
    const to = Math.min(state.shown.length, from + Math.ceil(box.clientHeight / LINE) + 8);
    inner.replaceChildren(...Array.from({ length: Math.max(0, to - from) }, (_, at) => this.line(from + at)));
  },

  line(at) {
    const row = state.shown[at];
    const value = state.scores[row];
    const decided = mine(row) || decisionsOn(row)[0];
    const bar = el("i", { class: "bar" });
    bar.style.width = `${Number.isFinite(value) ? 100 * ((value - histogram.low) / (histogram.high - histogram.low)) : 0}%`;
    const side = !Number.isFinite(value) ? "unscored" : isKept(row) ? "kept" : "dropped";
    const made = el(
      "button",
      { class: `line ${side}`, type: "button", tabindex: "-1", "aria-current": row === state.open, onclick: () => openRow(row) },
      el("span", { class: "number" }, number(row)),
      el("span", { class: "track" }, bar),
      el("span", { class: "score" }, score(value)),
      el("span", { class: `mark ${decided ? decided.decision : ""}`, title: decided ? `${decided.decision}, ${decided.who}` : "" }, decided ? MARKS[decided.decision] : ""),
    );
    made.style.top = `${at * LINE}px`;
    return made;
  },

  /** Scroll so that the open row is in sight. */
  reveal() {
    const at = state.shown.indexOf(state.open), box = byId("rows");
    if (at >= 0 && (at * LINE < box.scrollTop || (at + 1) * LINE > box.scrollTop + box.clientHeight)) {
      box.scrollTop = at * LINE - box.clientHeight / 2 + LINE;
    }
    this.draw();
  },
};

function joined(one, other) {
  const both = new Int32Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}

/** Scored rows from the threshold outwards. */
function nearestFirst() {
  const order = new Int32Array(state.ascending.length);
  let above = placeOf(state.threshold), below = above - 1;
  for (let at = 0; at < order.length; at++) {
    const up = above < order.length ? state.sorted[above] - state.threshold : Infinity;
    const down = below >= 0 ? state.threshold - state.sorted[below] : Infinity;
    order[at] = state.ascending[up <= down ? above++ : below--];
  }
  return order;
}

function stateTest(name) {
  const tests = {
    asked: (row) => teaching.asked !== null && teaching.asked[row] === 1,
    open: (row) => !mine(row),
    mine: (row) => Boolean(mine(row)),
    any: (row) => decisionsOn(row).length > 0,
    overruled: (row) => ({ [KEEP]: !isKept(row), [DROP]: isKept(row) })[ruling(decisionsOn(row))] === true,
    differ: (row) => new Set(decisionsOn(row).map((decision) => decision.decision)).size > 1,
    kept: isKept,
    dropped: (row) => state.scores[row] >= state.threshold,
    unscored: (row) => !Number.isFinite(state.scores[row]),
  };
  return tests[name] || (() => true);
}

/** Filter and order again. `keep`: the open row stays open, even if it is no longer in the list. */
function refreshList({ keep = false } = {}) {
  state.shown = rowsList.ordered().filter(rowsList.passes());
  byId("list-count").textContent = `${number(state.shown.length)} of ${number(state.rows)} rows`;
  if (!keep) byId("rows").scrollTop = 0;
  if (keep && state.open >= 0) rowsList.reveal();
  else if (state.shown.length) openRow(state.shown[0]);
  else rowsList.draw();
}

async function search(words) {
  alertUser("");
  if (!words.trim()) found = null;
  else {
    const body = await ask("search", { words });
    found = new Uint8Array(state.rows);
    for (const row of unpacked(body.rows, Int32Array)) found[row] = 1;
  }
  refreshList();
}

/** The choices of order and of kinds of rows, as the rows have them. */
function listKinds() {
  const option = ([value, name]) => el("option", { value }, name);
  const sorts = Object.entries(SORTS).filter(([name]) => name !== "span" || state.turns.some((turn) => turn >= 0));
  byId("sort").replaceChildren(...sorts.map(option));
  const kinds = Object.entries(state.groups).map(([name, group]) => {
    const counts = new Uint32Array(group.names.length + 1);
    for (const code of group.codes) counts[code]++;
    return el("optgroup", { label: name }, ...group.names.map((value, code) => option([JSON.stringify([name, code]), `${name}: ${value} (${number(counts[code])})`])));
  });
  byId("group").replaceChildren(option(["", "all kinds"]), ...kinds);
  byId("group").hidden = !kinds.length;
  byId("histogram-by").replaceChildren(option(["", "kept and dropped"]), ...Object.keys(state.groups).map((name) => option([name, name])));
}

function watchList() {
  byId("state").replaceChildren(...Object.entries(STATES).map(([value, name]) => el("option", { value }, name)));
  for (const id of ["sort", "group", "state"]) byId(id).addEventListener("change", () => { refreshList(); byId(id).blur(); });
  byId("rows").addEventListener("scroll", () => rowsList.draw());
  let waiting = 0;
  byId("search").addEventListener("keydown", (event) => event.key === "Enter" && byId("search").blur());
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => search(event.target.value).catch((error) => alertUser(error.message)), 250);
  });
}
