/* The scores of all rows, with a threshold that can be dragged, or moved by the arrow keys. */

const BINS = 90;
const EDGE = { left: 44, right: 14, top: 24, bottom: 30 };
const PALETTE = ["--kind-1", "--kind-2", "--kind-3", "--kind-4", "--kind-5", "--kind-6"];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A canvas at the resolution of the screen, cleared. */
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const draw = canvas.getContext("2d");
  draw.setTransform(scale, 0, 0, scale, 0, 0);
  draw.clearRect(0, 0, width, height);
  draw.font = `11px ${style("--sans")}`;
  return { draw, width, height };
}

const histogram = {
  low: 0,
  high: 1,
  layers: [], // one a kind of rows: its name and its count in each bin

  /** Count the rows in each bin, for each value of a column or for all. */
  count(by) {
    const sorted = state.sorted;
    this.low = sorted.length ? sorted[0] : 0;
    this.high = sorted.length ? sorted[sorted.length - 1] : 1;
    if (!(this.high > this.low)) this.high = this.low + 1;
    const group = state.groups[by];
    const most = group ? Math.min(group.names.length, PALETTE.length) : 0;
    const names = group ? [...group.names.slice(0, most), "other"] : [""];
    const bins = names.map(() => new Uint32Array(BINS));
    const wide = BINS / (this.high - this.low);
    for (const row of state.ascending) {
      const bin = Math.min(BINS - 1, Math.floor((state.scores[row] - this.low) * wide));
      bins[group ? Math.min(group.codes[row], most) : 0][bin]++;
    }
    this.layers = names.map((name, at) => ({ name, bins: bins[at], colour: PALETTE[at] || "--muted" }));
    this.layers = this.layers.filter((layer) => !group || layer.bins.some(Boolean));
    this.grouped = Boolean(group);
    byId("histogram-legend").replaceChildren(
      ...(group
        ? this.layers.map((layer) => legendItem(layer.colour, layer.name))
        : [legendItem("--kept", "kept"), legendItem("--dropped", "dropped")]),
    );
  },

  x(value, width) {
    return EDGE.left + ((value - this.low) / (this.high - this.low)) * (width - EDGE.left - EDGE.right);
  },

  value(x, width) {
    const share = (x - EDGE.left) / (width - EDGE.left - EDGE.right);
    return this.low + Math.min(1, Math.max(0, share)) * (this.high - this.low);
  },

  draw() {
    const { draw, width, height } = cleared(byId("histogram"));
    const floor = height - EDGE.bottom;
    const totals = Array.from({ length: BINS }, (_, bin) => this.layers.reduce((sum, layer) => sum + layer.bins[bin], 0));
    const most = Math.max(1, ...totals);
    const tall = (count) => (Math.sqrt(count) / Math.sqrt(most)) * (floor - EDGE.top);
    this.axes(draw, width, floor, most, tall);
    const at = this.x(Math.min(Math.max(state.threshold, this.low), this.high), width);
    draw.fillStyle = style("--dropped-wash");
    draw.fillRect(at, EDGE.top, Math.max(0, width - EDGE.right - at), floor - EDGE.top);
    const wide = (width - EDGE.left - EDGE.right) / BINS;
    totals.forEach((total, bin) => {
      const left = EDGE.left + bin * wide;
      let below = 0;
      for (const layer of this.layers) {
        if (!layer.bins[bin]) continue;
        const part = tall(total) * (layer.bins[bin] / total); // the root of each part would not be comparable
        this.bar(draw, left, wide - 1, floor - below - part, part, at, layer.colour);
        below += part;
      }
    });
    this.handle(draw, at, floor);
  },

  bar(draw, left, wide, top, tall, at, colour) {
    if (this.grouped) {
      draw.fillStyle = style(colour);
      draw.fillRect(left, top, wide, tall);
      return;
    }
    const kept = Math.min(Math.max(at - left, 0), wide); // the bin in which the threshold lies is of both
    draw.fillStyle = style("--kept");
    draw.fillRect(left, top, kept, tall);
    draw.fillStyle = style("--dropped");
    draw.fillRect(left + kept, top, wide - kept, tall);
  },

  axes(draw, width, floor, most, tall) {
    draw.strokeStyle = style("--line");
    draw.fillStyle = style("--muted");
    draw.lineWidth = 1;
    draw.textAlign = "right";
    draw.textBaseline = "middle";
    let last = Infinity;
    for (const count of [most, ...powers(most)]) {
      const y = Math.round(floor - tall(count)) + 0.5;
      if (Math.abs(last - y) < 16) continue;
      last = y;
      draw.beginPath();
      draw.moveTo(EDGE.left, y);
      draw.lineTo(width - EDGE.right, y);
      draw.stroke();
      draw.fillText(number(count), EDGE.left - 6, y);
    }
    draw.textBaseline = "top";
    draw.textAlign = "center";
    const marks = ticks(this.low, this.high, Math.max(4, Math.floor(width / 90)));
    tickTexts(marks).forEach((text, at) => draw.fillText(text, this.x(marks[at], width), floor + 5));
    draw.textAlign = "left";
    draw.fillText(this.grouped ? "rows (bars on a square-root scale, their parts in proportion)" : "rows (square-root scale)", 4, 2);
    draw.fillText("score", EDGE.left, floor + 18);
    draw.textAlign = "right";
    draw.fillText("more dangerous →", width - EDGE.right, floor + 18);
  },

  handle(draw, at, floor) {
    draw.strokeStyle = draw.fillStyle = style("--ink");
    draw.lineWidth = 2;
    draw.beginPath();
    draw.moveTo(at, EDGE.top - 4);
    draw.lineTo(at, floor + 3);
    draw.stroke();
    draw.beginPath();
    draw.roundRect(at - 6, EDGE.top - 8, 12, 16, 4);
    draw.fill();
    if (state.open >= 0 && Number.isFinite(state.scores[state.open])) {
      const x = this.x(state.scores[state.open], byId("histogram").clientWidth);
      draw.beginPath();
      draw.moveTo(x, floor + 1);
      draw.lineTo(x - 5, floor + 9);
      draw.lineTo(x + 5, floor + 9);
      draw.fill();
    }
  },
};

function legendItem(colour, name) {
  const swatch = el("i", { class: "swatch" });
  swatch.style.background = `var(${colour})`;
  return el("span", { title: name }, swatch, el("span", { class: "name" }, name));
}

/** 1, 10, 100, ... below a number. */
const powers = (most) => Array.from({ length: 8 }, (_, at) => 10 ** (7 - at)).filter((count) => count < most);

/** Round numbers between two, about so many. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((wide) => wide >= 0.7 * raw);
  const found = [];
  // counted, because a number that is too large for its step does not grow when one is added
  for (let at = Math.ceil(low / step), left = 4 * count; at * step <= high && left; at++, left--) found.push(Number((at * step).toPrecision(16)));
  return [...new Set(found)];
}

/** The ticks as texts, with as many digits as tell them apart. */
function tickTexts(marks) {
  const short = marks.map(score);
  if (new Set(short).size === marks.length) return short;
  const digits = Array.from({ length: 12 }, (_, at) => at + 5).find((most) => new Set(marks.map((tick) => tick.toPrecision(most))).size === marks.length);
  return marks.map((tick) => String(Number(tick.toPrecision(digits || 17))));
}

/** Set the threshold; `done` is false while it is still being dragged. */
function moveThreshold(value, done = true) {
  if (!Number.isFinite(value)) return;
  state.threshold = value;
  histogram.draw();
  scatter.draw();
  showOutcome();
  if (done) refreshList({ keep: true });
  else rowsList.draw();
  if (state.open >= 0) rowPanel.standing();
}

function watchHistogram() {
  const canvas = byId("histogram");
  const value = (event) => histogram.value(event.offsetX, canvas.clientWidth);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    moveThreshold(value(event), false);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) moveThreshold(value(event), false);
  });
  canvas.addEventListener("pointerup", (event) => moveThreshold(value(event)));
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!steps) return;
    event.preventDefault();
    event.stopPropagation(); // the arrows change the row elsewhere
    moveThreshold(state.threshold + (steps * (histogram.high - histogram.low)) / 400);
  });
  byId("threshold").addEventListener("change", (event) => {
    const typed = Number(event.target.value.trim().replace(",", ".") || NaN);
    alertUser(Number.isFinite(typed) ? "" : `${event.target.value || "Nothing"} is no threshold: write a number, such as ${score(state.threshold)}.`);
    if (Number.isFinite(typed)) moveThreshold(typed);
    else byId("threshold").value = score(state.threshold);
  });
  byId("reset").addEventListener("click", () => moveThreshold(state.start));
  byId("histogram-by").addEventListener("change", (event) => {
    histogram.count(event.target.value);
    histogram.draw();
  });
}

/** The counts at the threshold, and what people change of them. */
function showOutcome() {
  const { kept, dropped, unscored, rescued, removed, masked } = outcome();
  const share = (count) => `${((100 * count) / state.rows).toFixed(1)} %`;
  const line = (name, count, kind) => [el("dt", {}, name), el("dd", { class: kind }, number(count)), el("dd", { class: "share" }, share(count))];
  byId("counts").replaceChildren(
    ...line("kept", kept, "kept"),
    ...line("dropped", dropped, "dropped"),
    ...(unscored ? line("no score", unscored, "unscored") : []),
  );
  byId("threshold").value = score(state.threshold);
  const card = "hf-safefilter card decided --license LICENSE --source SOURCE --output out";
  const first = state.command.replace("THRESHOLD", String(state.threshold));
  const middle = first.startsWith("hf-safefilter card ") ? [] : [card];
  byId("command").textContent = [first, ...middle, "hf-safefilter push out me/my-set"].join("\n");
  byId("reset").hidden = state.threshold === state.start;
  const canvas = byId("histogram");
  canvas.setAttribute("aria-valuemin", histogram.low);
  canvas.setAttribute("aria-valuemax", histogram.high);
  canvas.setAttribute("aria-valuenow", state.threshold);
  canvas.setAttribute("aria-valuetext", `${score(state.threshold)}: ${number(kept)} kept, ${number(dropped)} dropped`);
  const changes = [[rescued, "kept"], [removed, "dropped"], [masked, "masked"]].filter(([count]) => count);
  const { rows, agreed, alpha } = state.agreement;
  byId("people").textContent = [
    changes.length ? `By decisions: ${changes.map(([count, word]) => `${number(count)} ${word}`).join(", ")}.` : "",
    rows ? `${state.reviewers.length} reviewers agree on ${number(agreed)} of ${number(rows)} shared rows${alpha === null ? "" : ` (alpha ${alpha.toFixed(2)})`}.` : "",
  ].join(" ");
}
