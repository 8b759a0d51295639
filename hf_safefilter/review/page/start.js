/* Start: the numbers first, then the list and the first row, then the map and the verdict. */

function drawAll() {
  histogram.draw();
  scatter.draw();
  rowsList.draw();
}

async function showVerdict() {
  const body = await ask("verdict");
  byId("verdict").textContent = `Verdict: ${body.sentence}`;
  byId("verdict").className = body.bad ? "bad" : body.trusted ? "good" : "";
}

/** Show all rows anew, after their numbers have come. */
function showRows() {
  byId("column").textContent = state.column;
  listKinds();
  histogram.count("");
  histogram.draw();
  showOutcome();
  showProgress();
  refreshList();
}

async function start() {
  const body = await ask("rows");
  takeOverview(body);
  document.title = `Review: ${body.name}`;
  byId("what").textContent = `${body.name}: ${number(body.rows)} rows. Decisions go to ${body.log} at once.`;
  byId("who").value = body.who;
  watchList();
  watchHistogram();
  watchKeys();
  watchMap();
  watchTeaching();
  showTextToggle();
  showRows();
  document.body.dataset.ready = "true";
  new ResizeObserver(drawAll).observe(byId("overview"));
  new ResizeObserver(() => rowsList.draw()).observe(byId("rows"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  await Promise.all([loadMap(), showVerdict()]);
  document.body.dataset.complete = "true";
}

start().catch((error) => alertUser(error.message));
