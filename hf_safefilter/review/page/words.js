/* Which words carry the score: the row is read again by its model, and each word coloured by its tokens' own scores. */

const words = {
  on: false,

  /** Colour the words of the open row, if that is asked for and its text is shown. */
  async draw() {
    const row = state.open;
    if (!this.on || !state.text || row < 0) return;
    let body;
    try {
      body = await fetchWords(row);
    } catch (error) {
      this.on = false;
      alertUser(error.message);
      return;
    }
    if (state.open !== row || !this.on || !state.text) return; // another was opened in the meantime
    const all = body.turns.flatMap((turn) => turn.scores).filter((value) => value !== null);
    const middle = all.reduce((sum, value) => sum + value, 0) / Math.max(1, all.length);
    const far = all.map((value) => Math.abs(value - middle)).sort((one, other) => one - other);
    const most = far[Math.floor(0.95 * (far.length - 1))] || 1;
    for (const { turn, words: said, scores } of body.turns) {
      const place = document.querySelector(`#row .turn[data-turn="${turn}"] pre`);
      place?.replaceChildren(...said.map((word, at) => coloured(word, scores[at], middle, most)));
    }
    byId("row").querySelector(".words-note")?.remove();
    byId("standing").after(el("p", { class: "words-note" }, `${body.method}, word by word, as the model reads it: `, el("mark", { class: "up" }, "raises the score of this row"), " ", el("mark", { class: "down" }, "lowers it")));
  },
};

function fetchWords(row) {
  const key = `${row}/words`;
  if (!cache.has(key)) {
    const asked = ask(`row/${row}/words`);
    asked.catch(() => cache.delete(key));
    cache.set(key, asked);
  }
  return cache.get(key);
}

/** A word, the stronger coloured the further its score is from that of the row's words on average. */
function coloured(word, value, middle, most) {
  if (value === null) return document.createTextNode(word);
  const share = Math.max(-1, Math.min(1, (value - middle) / most));
  const made = el("mark", { class: share > 0 ? "up" : "down", title: score(value) }, word);
  made.style.setProperty("--share", Math.abs(share).toFixed(2));
  return made;
}

function toggleWords() {
  if (!words.on && !state.text) {
    alertUser("Show the text first, with T: words are coloured in it.");
    return;
  }
  alertUser("");
  words.on = !words.on;
  if (state.open >= 0) openRow(state.open);
}
