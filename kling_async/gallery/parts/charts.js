// Charts of the run. Each has one path per phase, so that five thousand jobs are a handful of elements.

const LEFT = 8, RIGHT = 8, BELOW = 24;

class Charts {
  constructor(store, open) {
    this.store = store;
    this.open = open;
    this.box = $("run");
    this.shown = -Infinity;
    new ResizeObserver(() => this.show()).observe(this.box);
  }

  // Redraw at most every two seconds: it replaces the element under the pointer.
  soon() {
    const rest = this.shown + 2000 - performance.now();
    if (rest <= 0 || !this.box.childElementCount) this.show();
    else this.timer ??= setTimeout(() => this.show(), rest);
  }

  show() {
    const width = this.box.clientWidth;
    clearTimeout(this.timer);
    this.timer = null;
    if (this.box.hidden || !width) return;
    this.shown = performance.now();
    const figures = this.store.figures;
    // What was never sent has no time to show.
    const begun = [...this.store.cards.values()].filter((card) => card.times[0] !== null);
    const cards = begun.filter((card) => this.store.phases(card).some((seconds) => seconds !== null))
      .sort((a, b) => a.times[0] - b.times[0] || (a.times[1] ?? Infinity) - (b.times[1] ?? Infinity) || a.n - b.n);
    if (!cards.length) {
      this.box.replaceChildren(element("p", {class: "none panel whole"}, begun.length ? "Nothing was sent." : "No jobs yet."));
      return;
    }
    const end = this.store.live && !this.store.about.over ? Math.max(figures.last, this.store.about.now) : figures.last;
    const time = {from: figures.first, to: Math.max(end, figures.first + 1)};
    const half = width < 700 ? width - 40 : (width - 16) / 2 - 40;
    this.box.replaceChildren(
      this.timeline(cards, time, width - 40), this.running(cards, time, half), this.spending(cards, time, half), this.models(figures),
    );
  }

  timeline(cards, time, width) {
    const rows = cards.length;
    const tall = Math.max(120, Math.min(460, rows * 14));
    const row = tall / rows;
    const thick = row > 4 ? row - 2 : row;
    const x = scale(time, width);
    const paths = {waiting: "", generating: "", downloading: "", failed: ""};
    const draw = (kind, from, seconds, place) => {
      if (seconds === null || from === null) return;
      const left = x(from), wide = Math.max(0.75, x(from + seconds) - left);
      paths[kind] += `M${left.toFixed(1)} ${(place * row).toFixed(2)}h${wide.toFixed(1)}v${thick.toFixed(2)}h${(-wide).toFixed(1)}z`;
    };
    cards.forEach((card, place) => {
      const [waiting, generating, downloading] = this.store.phases(card);
      draw("waiting", card.times[0], waiting, place);
      draw(card.state === "failed" ? "failed" : "generating", card.times[1], generating, place);
      draw("downloading", card.times[2], downloading, place);
    });
    const pointer = element("line", {class: "pointer", x1: 0, x2: width, visibility: "hidden"});
    const svg = chart(width, tall, `Every job as a line over ${span(time.to - time.from)}: waiting, generating, downloading.`,
      ...timeAxis(time, x, tall), ...Object.entries(paths).map(([kind, d]) => element("path", {class: kind, d})), pointer);
    svg.classList.add("picks");
    const kinds = [["waiting", "Waiting"], ["generating", "Generating"], ["downloading", "Downloading"], ["failed", "Failed"]].filter(([kind]) => paths[kind]);
    const legend = kinds.map(([kind, word]) => element("span", {class: `legend of-${kind}`}, element("span", {class: "dot"}), word));
    const summary = `${plural(rows, "job")} in ${span(time.to - time.from)}`;
    const note = element("span", {class: "note cut", dir: "auto"}, summary);
    const at = (event) => cards[Math.max(0, Math.min(rows - 1, Math.floor((event.clientY - svg.getBoundingClientRect().top) / row)))];
    svg.addEventListener("pointermove", (event) => {
      const card = at(event);
      const middle = (cards.indexOf(card) + 0.5) * row;
      for (const [name, value] of [["y1", middle], ["y2", middle], ["visibility", "visible"]]) pointer.setAttribute(name, value);
      const phases = this.store.phases(card).map((seconds, place) => seconds === null ? "" : `${kinds.length ? ["waited", "generated", "downloaded"][place] : ""} ${span(seconds)}`);
      setText(note, [card.name, ...phases.filter(Boolean)].join("  ·  "));
    });
    svg.addEventListener("pointerleave", () => {
      pointer.setAttribute("visibility", "hidden");
      setText(note, summary);
    });
    svg.addEventListener("click", (event) => this.open(at(event)));
    return panel("Timeline", [note, ...legend], svg, true);
  }

  running(cards, time, width) {
    const steps = [];
    for (const card of cards) {
      const generating = this.store.phases(card)[1];
      if (card.times[1] === null) continue;
      steps.push([card.times[1], 1]);
      if (card.times[2] !== null || card.times[3] !== null) steps.push([card.times[1] + generating, -1]);
    }
    steps.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    let count = 0, most = 0;
    const points = steps.map(([at, by]) => {
      count += by;
      most = Math.max(most, count);
      return [at, count];
    });
    const peak = `at most ${number(most)}`;
    return panel("Generating at once", [element("span", {class: "note"}, peak)],
      stepped(points, time, width, most, number, `Videos generating at once over time, ${peak}.`));
  }

  spending(cards, time, width) {
    let sum = 0;
    const points = cards.filter((card) => card.cost !== null && card.times[1] !== null)
      .sort((a, b) => a.times[1] - b.times[1]).map((card) => [card.times[1], sum += card.cost]);
    const total = money(sum);
    return panel("Spend", [element("span", {class: "note"}, `${total} at list price`)],
      stepped(points, time, width, sum, money, `Spend over time, ${total} at the end.`));
  }

  models({models, times}) {
    const to = Math.max(1, quantile(times, 0.995) ?? 1, ...models.map((model) => quantile(model.times, 0.5) ?? 0)) * 1.04;
    const head = element("tr", {}, element("th", {scope: "col"}, "Model"),
      ...["Jobs", "Failed"].map((word) => element("th", {scope: "col", class: "right"}, word)),
      element("th", {scope: "col"}, `Time to generate, from 0 to ${span(to)}`),
      ...["Median", "p95", "Spend"].map((word) => element("th", {scope: "col", class: "right"}, word)));
    const body = models.map((model) => {
      const median = quantile(model.times, 0.5);
      const cells = [number(model.jobs), model.failed ? number(model.failed) : "–"].map((text) => element("td", {class: "right"}, text));
      const last = [span(median) || "–", span(quantile(model.times, 0.95)) || "–", spend(model)].map((text) => element("td", {class: "right"}, text));
      return element("tr", {}, element("td", {}, model.model || "–"), ...cells,
        element("td", {class: "histogram"}, model.times.length ? histogram(model.times, median, to) : "–"), ...last);
    });
    const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    return panel("Models", [], element("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Models"}, table), true);
  }
}

function spend({spent, unpriced}) {
  if (!unpriced) return money(spent);
  return spent ? `${money(spent)} + ${number(unpriced)} unpriced` : "unpriced";
}

function panel(title, beside, content, whole = false) {
  return element("section", {class: whole ? "panel whole" : "panel"}, element("div", {class: "over"}, element("h2", {}, title), ...beside), content);
}

function chart(width, tall, label, ...content) {
  return element("svg", {class: "chart", viewBox: `0 0 ${width} ${tall + BELOW}`, height: tall + BELOW, role: "img", "aria-label": label}, ...content);
}

const scale = ({from, to}, width) => (at) => LEFT + (at - from) / (to - from) * (width - LEFT - RIGHT);

const TIMES = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

function timeAxis({from, to}, x, tall) {
  const room = Math.max(2, Math.floor((x(to) - x(from)) / 90));
  const step = TIMES.find((each) => (to - from) / each <= room) ?? Math.ceil((to - from) / room / 86400) * 86400;
  const ticks = [];
  for (let at = 0; at <= to - from; at += step) {
    const place = x(from + at);
    ticks.push(element("line", {class: "grid-line", x1: place, x2: place, y1: 0, y2: tall}),
      element("text", {x: place, y: tall + 18, "text-anchor": at === 0 ? "start" : "middle"}, at === 0 ? "0" : step < 1 ? `${at} s` : span(at).replace(/\.0 s$/, " s")));
  }
  return ticks;
}

function valueTicks(most) {
  const rough = most / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const ticks = [];
  for (let value = step; value <= most * 1.0001; value += step) ticks.push(value);
  return ticks;
}

function stepped(points, time, width, most, format, label) {
  const tall = 150, top = 8;
  const x = scale(time, width);
  const y = (value) => tall - (most ? value / most : 0) * (tall - top);
  // At most one step per half pixel.
  const thinned = new Map();
  for (const [at, value] of points) thinned.set(Math.round(x(at) * 2) / 2, y(value));
  let line = `M${LEFT} ${tall}`;
  for (const [at, height] of thinned) line += `H${at}V${height.toFixed(1)}`;
  line += `H${x(time.to).toFixed(1)}`;
  const ticks = (most > 0 ? valueTicks(most) : []).filter((value) => format !== number || Number.isInteger(value)).flatMap((value) => [
    element("line", {class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value)}),
    element("text", {x: LEFT, y: y(value) - 4}, format(value).replace(/\.00$/, "")),
  ]);
  return chart(width, tall, label, ...timeAxis(time, x, tall),
    element("path", {class: "area", d: `${line}V${tall}z`}), element("path", {class: "stroke", d: line}), ...ticks);
}

function histogram(times, median, to) {
  const bins = new Array(times.length < 50 ? 24 : 48).fill(0);
  for (const seconds of times) bins[Math.min(bins.length - 1, Math.floor(seconds / to * bins.length))] += 1;
  const most = Math.max(...bins), wide = 480 / bins.length, tall = 34;
  const d = bins.map((count, place) => {
    const height = count ? Math.max(1.5, count / most * tall) : 0;
    return height ? `M${place * wide + 0.5} ${tall}v${-height.toFixed(1)}h${wide - 1}v${height.toFixed(1)}z` : "";
  }).join("");
  const at = median / to * 480;
  return element("svg", {viewBox: `0 0 480 ${tall + 2}`, height: tall + 2, preserveAspectRatio: "none", role: "img", "aria-label": `${plural(times.length, "video")}, half of them within ${span(median)}`},
    element("line", {class: "axis", x1: 0, x2: 480, y1: tall + 0.5, y2: tall + 0.5}), element("path", {class: "column", d}),
    element("line", {class: "median", x1: at, x2: at, y1: 0, y2: tall}));
}
