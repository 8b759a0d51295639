/* The map: rows in the plane of their two largest components, coloured by their score against the threshold. */

const MANY = 5000; // rows that are drawn smaller, and below the references
const REACH = 14; // pixels from a point within which a click opens its row

const scatter = {
  draw() {
    const canvas = byId("map");
    if (!state.points) return;
    const { draw, width, height } = cleared(canvas);
    const scale = window.devicePixelRatio || 1;
    const places = this.places(width, height);
    const many = state.rows > MANY; // so many rows would hide the references, which else would hide them
    if (!many) this.references(draw, width, height);
    const image = draw.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    const base = Math.max(2, Math.round((many ? 2 : 4) * scale));
    const colours = this.colours();
    for (const row of state.ascending) { // the highest scores last, on top
      const size = isKept(row) ? base : Math.round(1.5 * base); // larger, so that the colour is not all that tells
      const x = Math.round(places[2 * row] * scale - size / 2), y = Math.round(places[2 * row + 1] * scale - size / 2);
      if (!(x >= 0 && y >= 0 && x + size < canvas.width && y + size < canvas.height)) continue;
      const colour = colours[this.shade(row)];
      for (let down = 0; down < size; down++) pixels.fill(colour, (y + down) * canvas.width + x, (y + down) * canvas.width + x + size);
    }
    draw.putImageData(image, 0, 0);
    if (many) this.references(draw, width, height);
    if (state.open >= 0 && Number.isFinite(places[2 * state.open])) {
      draw.strokeStyle = style("--ink");
      draw.lineWidth = 2;
      draw.beginPath();
      draw.arc(places[2 * state.open], places[2 * state.open + 1], 8, 0, 7);
      draw.stroke();
    }
  },

  /** x and y of each row on the canvas. */
  places(width, height) {
    if (this.cached && this.cached.width === width && this.cached.height === height) return this.cached.places;
    const { rows } = state.points;
    const at = this.onto(width, height);
    const places = new Float32Array(rows.length);
    for (let row = 0; row < rows.length; row += 2) [places[row], places[row + 1]] = at(rows[row], rows[row + 1]);
    this.cached = { width, height, places };
    return places;
  },

  onto(width, height) {
    const { low, high } = this.bounds();
    const pad = 14;
    return (x, y) => [
      pad + ((x - low[0]) / (high[0] - low[0] || 1)) * (width - 2 * pad),
      height - pad - ((y - low[1]) / (high[1] - low[1] || 1)) * (height - 2 * pad),
    ];
  },

  bounds() {
    if (this.edges) return this.edges;
    const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (const points of [state.points.rows, state.points.unsafe, state.points.safe]) {
      for (let at = 0; at < points.length; at++) {
        if (!Number.isFinite(points[at])) continue;
        if (points[at] < low[at % 2]) low[at % 2] = points[at];
        if (points[at] > high[at % 2]) high[at % 2] = points[at];
      }
    }
    this.edges = { low, high };
    return this.edges;
  },

  /** 0 to 15 below the threshold, 16 to 31 above: how far, as a share of the scores on that side. */
  shade(row) {
    const value = state.scores[row];
    const low = state.sorted[0], high = state.sorted[state.sorted.length - 1];
    if (value < state.threshold) return 15 - Math.round(15 * Math.min(1, (state.threshold - value) / (state.threshold - low || 1)));
    return 16 + Math.round(15 * Math.min(1, (value - state.threshold) / (high - state.threshold || 1)));
  },

  colours() {
    const ends = ["--kept", "--near", "--near", "--dropped"].map((name) => rgb(style(name)));
    return Array.from({ length: 32 }, (_, at) => {
      const [from, to] = at < 16 ? [ends[0], ends[1]] : [ends[2], ends[3]];
      const share = at < 16 ? at / 15 : (at - 16) / 15;
      const mixed = from.map((part, channel) => Math.round(part + share * (to[channel] - part)));
      return (255 << 24) | (mixed[2] << 16) | (mixed[1] << 8) | mixed[0]; // little-endian: alpha, blue, green, red
    });
  },

  references(draw, width, height) {
    const at = this.onto(width, height);
    draw.lineWidth = 1.25; // outlines, so that rows are seen through them
    for (const [points, colour, mark] of [[state.points.safe, "--safe-reference", circle], [state.points.unsafe, "--unsafe-reference", triangle]]) {
      draw.strokeStyle = style(colour);
      for (let place = 0; place < points.length; place += 2) {
        draw.beginPath();
        mark(draw, ...at(points[place], points[place + 1]));
        draw.stroke();
      }
    }
  },

  /** Open the row nearest to a place on the canvas. */
  click(x, y) {
    const canvas = byId("map");
    if (!state.points) return;
    const places = this.places(canvas.clientWidth, canvas.clientHeight);
    let nearest = -1, least = REACH ** 2;
    for (let row = 0; row < state.rows; row++) {
      const distance = (places[2 * row] - x) ** 2 + (places[2 * row + 1] - y) ** 2;
      if (distance < least) [nearest, least] = [row, distance];
    }
    if (nearest >= 0) openRow(nearest);
  },
};

function circle(draw, x, y) {
  draw.arc(x, y, 4, 0, 7);
}

function triangle(draw, x, y) {
  draw.moveTo(x, y - 5);
  draw.lineTo(x + 5, y + 4);
  draw.lineTo(x - 5, y + 4);
  draw.closePath();
}

/** "#rrggbb" as three numbers. */
const rgb = (text) => [1, 3, 5].map((at) => Number.parseInt(text.slice(at, at + 2), 16));

async function loadMap() {
  const body = await ask("map");
  const note = byId("map-note");
  byId("map-figure").classList.toggle("empty", !body.rows);
  if (!body.rows) {
    note.textContent = "These rows have no vectors, so there is no map.";
    return;
  }
  scatter.cached = scatter.edges = null;
  state.points = { rows: unpacked(body.rows, Float32Array), unsafe: unpacked(body.unsafe, Float32Array), safe: unpacked(body.safe, Float32Array) };
  note.textContent = `Two principal components of ${body.column}: ${(100 * body.share).toFixed(0)} % of the variance. Click a point.`;
  const legend = [legendItem("--kept", "kept"), legendItem("--dropped", "dropped")];
  if (state.points.unsafe.length) legend.push(el("span", {}, el("b", { class: "unsafe" }, "△"), "unsafe,"), el("span", {}, el("b", { class: "safe" }, "○"), "safe references"));
  byId("map-legend").replaceChildren(...legend);
  scatter.draw();
}

function watchMap() {
  byId("map").addEventListener("click", (event) => scatter.click(event.offsetX, event.offsetY));
}
