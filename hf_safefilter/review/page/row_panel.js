/* One row: its turns, which of them has the score, and what is known beside. Text is hidden until asked for. */

const cache = new Map(); // row and whether its text is wanted -> its body, or the promise of it
const CACHED = 60;
const ROLES = ["system", "developer", "user", "assistant", "tool", "text"];

function fetchRow(row, text) {
  const key = `${row}/${text}`;
  if (!cache.has(key)) {
    if (cache.size > CACHED) cache.delete(cache.keys().next().value);
    const asked = ask(`row/${row}${text ? "?text=1" : ""}`);
    asked.catch(() => cache.delete(key));
    cache.set(key, asked);
  }
  return cache.get(key);
}

/** Open a row, and fetch its neighbours in the list beforehand. */
async function openRow(row) {
  state.open = row;
  byId("row").setAttribute("aria-busy", "true");
  histogram.draw();
  scatter.draw();
  rowsList.reveal();
  let body;
  try {
    body = await fetchRow(row, state.text);
  } catch (error) {
    alertUser(error.message);
    return;
  }
  if (state.open !== row) return; // another was opened in the meantime
  rowPanel.show(body);
  const at = state.shown.indexOf(row);
  for (const next of [at + 1, at + 2, at - 1]) {
    if (at >= 0 && next >= 0 && next < state.shown.length) fetchRow(state.shown[next], state.text).catch(() => {});
  }
}

const rowPanel = {
  body: null,

  show(body) {
    this.body = body;
    const note = document.querySelector(`.note-box[data-row="${body.place}"]`); // opened before the row was there
    const turns = body.sides.flatMap((side) => [
      side.name ? el("h3", { class: "side" }, `${side.name} answer`) : null,
      ...side.turns.map((turn, at) => this.turn(turn, at, side.name)),
    ]);
    byId("row").replaceChildren(
      el("div", { id: "standing" }),
      body.reason ? el("p", { class: "reason" }, `This row could not be read: ${body.reason}. It is dropped.`) : el("p", { class: "why" }, body.words),
      state.text ? "" : el("p", { class: "hidden-text" }, "The text is hidden. ", el("kbd", {}, "T"), " shows it; it may be harmful."),
      body.tools ? el("section", { class: "turn" }, el("header", {}, el("b", {}, "tools")), el("pre", { dir: "auto" }, body.tools)) : "",
      ...turns.filter(Boolean),
    );
    if (note) {
      byId("standing").after(note);
      byId("note").focus();
    }
    byId("row").setAttribute("aria-busy", "false");
    byId("row").scrollTop = 0;
    this.standing();
    this.facts(body);
    this.marks();
    words.draw();
    const box = byId("row"), guilty = box.querySelector(".guilty");
    if (guilty && box.scrollHeight > box.clientHeight && guilty.offsetTop + 60 > box.clientHeight) box.scrollTop = guilty.offsetTop - box.clientHeight / 3;
  },

  /** The line above the row: its number, its score, and on which side it stands. */
  standing() {
    const row = state.open, value = state.scores[row];
    const side = !Number.isFinite(value) ? "no score: dropped" : isKept(row) ? "below the threshold: kept" : "above the threshold: dropped";
    const kind = !Number.isFinite(value) ? "unscored" : isKept(row) ? "kept" : "dropped";
    byId("standing")?.replaceChildren(
      el("h2", {}, `Row ${number(row)}`),
      el("span", { class: "big" }, score(value)),
      el("span", { class: `side-tag ${kind}` }, side),
      ...decisionsOn(row).map((decision) => el("span", { class: `decision ${decision.decision}` }, `${decision.who}: ${decision.decision}${decision.reference ? ", reference" : ""}${decision.note ? " ✎" : ""}`)),
    );
  },

  turn(turn, at, side) {
    const guilty = turn.spans.some((span) => span.decides);
    const heat = Math.max(0, ...turn.spans.map((span) => span.above ?? 0));
    const spans = turn.spans.map((span, number) =>
      el("span", { class: span.decides ? "span decides" : "span", title: `tokens ${span.start} to ${span.stop}` }, `${number ? "" : `${this.body.method} `}${score(span.score)}`));
    const made = el(
      "section",
      { class: `turn ${ROLES.includes(turn.role) ? turn.role : "other"}${guilty ? " guilty" : ""}`, "data-turn": side === "rejected" ? null : at },
      el(
        "header",
        {},
        el("b", {}, turn.role),
        el("span", { class: "place" }, `turn ${at}, ${number(turn.size)} characters`),
        ...spans,
        guilty ? el("span", { class: "tag" }, "decides") : "",
        side !== "rejected" && turn.spans.length
          ? el("button", { class: "mask-turn", type: "button", tabindex: "-1", onclick: () => toggleTurn(at) }, "mask")
          : "",
      ),
      "text" in turn ? el("pre", { dir: "auto" }, turn.text || "(nothing)") : "",
    );
    made.style.setProperty("--heat", heat.toFixed(3));
    return made;
  },

  facts(body) {
    const table = el("table", {}, ...body.scores.map((line) =>
      el("tr", { class: line.name === state.column ? "current" : "" }, el("th", {}, line.name.replace(/_score$/, "")), el("td", {}, score(line.score)),
        el("td", { title: "share of the rows that score lower" }, line.above === null ? "" : meter(line.above)))));
    const sides = ["unsafe", "safe"].filter((side) => body.references[side]?.length);
    const kinds = Object.entries(body.groups).filter(([, value]) => value);
    byId("facts").replaceChildren(
      el("h3", {}, "All scores, and the share of rows below"),
      table,
      ...sides.flatMap((side) => [el("h3", {}, el("b", { class: side }, side === "unsafe" ? "▲ " : "● "), `nearest ${side} references`), el("ol", { class: "near" }, ...body.references[side].map(reference))]),
      ...(sides.length ? [] : [el("p", { class: "quiet" }, "No references are known for this row.")]),
      ...(kinds.length ? [el("h3", {}, "Kinds"), el("dl", {}, ...kinds.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]))] : []),
      el("h3", {}, "Duplicates"),
      body.copies.length
        ? el("p", {}, ...body.copies.slice(0, 12).map((row) => el("button", { class: "link", type: "button", onclick: () => openRow(row) }, number(row))), body.copies.length > 12 ? ` and ${body.copies.length - 12} more` : "", el("small", {}, " A decision counts for all of them."))
        : el("p", { class: "quiet" }, "None."),
      ...decisionsOn(body.place).filter((decision) => decision.note).map((decision) => el("p", { class: "said", dir: "auto" }, el("b", {}, `${decision.who}: `), decision.note)),
      el("p", { class: "id" }, body.row_id),
    );
  },

  /** Which turns are masked by me. */
  marks() {
    const turns = mine(state.open)?.turns || [];
    for (const section of document.querySelectorAll("#row .turn[data-turn]")) {
      section.classList.toggle("masked", turns.includes(Number(section.dataset.turn)));
    }
  },

  /** The turn that a mask is meant for: the one that decides, or the last one that was read. */
  aim() {
    const turns = this.body.sides[0].turns;
    const guilty = turns.findIndex((turn) => turn.spans.some((span) => span.decides));
    return guilty >= 0 ? guilty : turns.findLastIndex((turn) => turn.spans.length > 0);
  },
};

function meter(share) {
  const bar = el("i", { class: "meter" }, el("i", {}));
  bar.firstChild.style.width = `${100 * share}%`;
  return el("span", { class: "metered" }, bar, `${(100 * share).toFixed(0)} %`);
}

function reference(near) {
  const head = [`${near.number}`, meter(Math.max(0, near.cosine))];
  head[1].lastChild.textContent = near.cosine.toFixed(2);
  if (!("text" in near)) return el("li", {}, ...head);
  return el("li", {}, el("details", {}, el("summary", {}, ...head), el("pre", { dir: "auto" }, near.text)));
}
