/* What the score learns from decisions: ten rows to decide on next, and all rows scored again. */

const teaching = { asked: null, busy: false, scoring: false, since: 0 }; // asked: which rows were asked for, a flag each

/** Run `work` with both buttons off, and say what is being done. */
async function teach(doing, work) {
  if (teaching.busy) return;
  teaching.busy = true;
  alertUser("");
  showTeaching(doing);
  let said = "";
  try {
    await sending; // what was decided before is on the disk
    said = await work();
    alertUser(""); // that decisions had to wait
  } catch (error) {
    alertUser(error.message);
  } finally {
    teaching.busy = teaching.scoring = false;
    showTeaching(said);
  }
}

/** List the ten rows whose decision would change the score most. */
function askForTen() {
  return teach("Choosing ten rows …", async () => {
    const { rows } = await ask("next", {});
    if (!rows.length) return "No row is left to ask for.";
    teaching.asked = new Uint8Array(state.rows);
    for (const row of rows) teaching.asked[row] = 1;
    byId("state").value = "asked";
    byId("search").value = byId("group").value = "";
    found = null;
    refreshList();
    return `${rows.length} rows are listed: keep or drop each, then score again.`;
  });
}

/** Fit the score to all decisions, score all rows by it, and show them. */
function scoreAgain() {
  return teach("Scoring all rows again …", async () => {
    teaching.scoring = true;
    const { sentence, output } = await ask("again", { threshold: state.threshold });
    teaching.since = 0;
    teaching.asked = null;
    if (byId("state").value === "asked") byId("state").value = "all";
    cache.clear();
    takeOverview(await ask("rows"));
    showRows();
    await Promise.all([loadMap(), showVerdict()]);
    return `Scored again, written to ${output}. ${sentence}`;
  });
}

/** Whether nothing can be decided now, because all rows are being scored again; then it is said. */
function waitForScores() {
  if (teaching.scoring) alertUser("All rows are being scored again: decide when the new scores are there.");
  return teaching.scoring;
}

/** The buttons, and what was said last. */
function showTeaching(said) {
  byId("ask-ten").disabled = byId("score-again").disabled = teaching.busy;
  if (said !== undefined) {
    byId("taught").textContent = said;
    byId("taught").hidden = !said;
  }
  byId("score-again").classList.toggle("ready", !teaching.busy && teaching.since > 0);
}

/** Mark the open row, on which I have decided, as one that is to join the references; or no longer. */
function toggleReference() {
  const own = mine(state.open);
  if (!own || ![KEEP, DROP].includes(own.decision)) {
    alertUser("Keep or drop this row first: a kept row joins the ordinary references, a dropped one the unsafe ones.");
    return;
  }
  decide(own.decision, { reference: !own.reference, next: false });
}

function watchTeaching() {
  byId("ask-ten").addEventListener("click", askForTen);
  byId("score-again").addEventListener("click", scoreAgain);
}
