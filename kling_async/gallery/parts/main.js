// Entry point: connects the parts with the address, the server's events and the user's input.

const data = JSON.parse($("data").textContent);
const store = new Store(data);
const grid = new Grid(store, (card) => openCard(card), (card, name) => markCard(card, name));
const films = new Films(store, (card, film, play) => openCard(card, film, play));
const charts = new Charts(store, (card) => openCard(card));
const detail = new Detail(store, {
  mark: (card, name) => markCard(card, name),
  place: (card) => {
    const cards = beside(), place = cards.findIndex((other) => other.n === card.n);
    return place < 0 ? "" : `${detail.film ? "Clip " : ""}${number(place + 1)} of ${number(cards.length)}`;
  },
  neighbour: (card, by) => beside()[beside().findIndex((other) => other.n === card.n) + by],
  closed: (card, film) => {
    if (location.hash.includes("job=")) address();
    if (view === "films" && film) films.focus(card, film);
    const place = grid.cards.findIndex((other) => other.n === card.n);
    if (view === "videos" && place >= 0) grid.focus(place);
  },
});
const VIEWS = ["videos", "films", "run"];
let view = "videos", wanted = null;

// The cards among which the dialog steps.
const beside = () => detail.film ? films.clips(detail.film) : grid.cards;

// Theme

const THEMES = {auto: "as the system", light: "light", dark: "dark"};

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const label = `Colours: ${THEMES[name]}`;
  const button = $("theme");
  button.replaceChildren(icon(name));
  button.title = label;
  button.setAttribute("aria-label", label);
  button.dataset.name = name;
}

function remembered() {
  try {
    return localStorage.getItem("kling-gallery-theme");
  } catch {
    return null;
  }
}

theme(remembered() in THEMES ? remembered() : "auto");
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf($("theme").dataset.name) + 1) % names.length];
  theme(next);
  try {
    localStorage.setItem("kling-gallery-theme", next);
  } catch { /* storage may be blocked for pages from the disk */ }
});

// Rendering

function showFigures() {
  const {counts, total, spent, unpriced, times, first, last, shown} = store.figures;
  const {about} = store;
  const figure = (value, small, label, kind = "") => element("div", {class: `figure ${kind}`}, element("b", {}, value, small ? element("small", {}, small) : null), element("span", {}, label));
  const end = store.live && !about.over ? Math.max(about.now, last) : last;
  const parts = [figure(number(counts.saved + about.dropped), ` / ${number(total)}`, "saved")];
  const live = store.live && !about.over;
  if (live || counts.running) parts.push(figure(number(counts.running), "", "running", live ? "" : "warn"));
  if (counts.unsaved) parts.push(figure(number(counts.unsaved), "", "unsaved", live ? "" : "warn"));
  if (counts.failed) parts.push(figure(number(counts.failed), "", "failed", "bad"));
  if (counts.uncertain) parts.push(figure(number(counts.uncertain), "", "uncertain", "warn"));
  if (counts.skipped) parts.push(figure(number(counts.skipped), "", "skipped"));
  parts.push(figure(money(spent), unpriced ? ` + ${number(unpriced)} unpriced` : "", "spent (list price)"));
  if (times.length) parts.push(figure(span(quantile(times, 0.5)), "", "median to generate"));
  if (first < Infinity) parts.push(figure(span(end - first), "", store.live && !about.over ? "so far" : "in total"));
  $("figures").replaceChildren(...parts);

  const unseen = Math.max(0, total - shown);
  const summary = Object.entries(counts).filter(([, count]) => count).map(([state, count]) => `${number(count)} ${STATES[state].toLowerCase()}`);
  $("bar").setAttribute("aria-label", summary.join(", ") || "no jobs yet");
  const shares = ["saved", "failed", "uncertain", "skipped", "unsaved", "running", "waiting"].map((state) => [state, counts[state] + (state === "waiting" ? unseen : state === "saved" ? about.dropped : 0)]);
  shares.filter(([, count]) => count).forEach(([state, count], place) => {
    const part = $("bar").children[place] ?? $("bar").appendChild(element("i"));
    part.className = `of-${state}`;
    part.style.flexGrow = count;
    part.style.background = state === "waiting" ? "transparent" : "var(--state)";
  });
  for (const rest of [...$("bar").children].slice(shares.filter(([, count]) => count).length)) rest.remove();
}

// Show a button for every name that there are cards of, in the order of the names.
function showChoices(box, names, counts, chosen, look) {
  const order = Object.keys(names);
  for (const name of order) {
    let button = box.querySelector(`[data-name="${name}"]`);
    const there = counts[name] || chosen.has(name);
    if (!button && there) {
      button = element("button", {type: "button", class: look.class(name), "data-name": name}, look.mark(name), element("span"), element("em"));
      const later = [...box.children].find((other) => order.indexOf(other.dataset.name) > order.indexOf(name));
      box.insertBefore(button, later ?? null);
    }
    if (!button) continue;
    button.hidden = !there;
    button.setAttribute("aria-pressed", chosen.has(name));
    setText(button.children[1], names[name]);
    setText(button.children[2], number(counts[name]));
  }
}

function showTools() {
  const {counts, marks, models} = store.figures;
  showChoices($("states"), STATES, counts, store.look.states, {class: (name) => `of-${name}`, mark: () => element("span", {class: "dot"})});
  showChoices($("marks"), MARKS, marks, store.look.marks, {class: (name) => `is-${name}`, mark: (name) => icon(name, 14)});
  $("marks").hidden = !Object.values(marks).some(Boolean) && !store.look.marks.size;
  const select = $("model");
  const names = models.map(({model}) => model).filter(Boolean).sort();
  if (select.dataset.names !== names.join("\n") || !select.options.length) {
    select.dataset.names = names.join("\n");
    select.replaceChildren(element("option", {value: ""}, "All models"), ...names.map((name) => element("option", {value: name}, name)));
  }
  select.value = store.look.model;
  select.hidden = names.length < 2 && !store.look.model;
  $("sort").value = store.look.sort;
  if ($("q").value !== store.look.q) $("q").value = store.look.q;
}

function showVideos() {
  const seen = store.seen();
  grid.show(seen);
  const nothing = !store.cards.size;
  $("none").hidden = seen.length > 0;
  $("clear").hidden = nothing;
  setText($("none-text"), nothing ? "No jobs yet." : "No matches.");
  $("dropped").hidden = !store.about.dropped;
  setText($("dropped"), `Not on this page: ${plural(store.about.dropped, "earlier job")} that ended. The ledger has them.`);
  const filtered = seen.length !== store.cards.size;
  setText($("found"), filtered ? `${plural(seen.length, "job")} of ${number(store.cards.size)}` : "");
}

function showLife() {
  const {live, past, over, kept, lost, now} = store.about;
  const life = $("life");
  life.className = `life ${live && !over && (lost || !past) ? lost ? "lost" : "live" : ""}`;
  const at = store.figures.last > -Infinity ? moment(store.figures.last) : now ? moment(now) : "";
  setText(life, live ? over ? kept ? `Ended. Kept as ${kept}` : "Ended" : lost ? "Connection lost, trying again" : past ? at : "Live" : at);
}

function showView() {
  $("tab-films").hidden = !store.about.films.length;
  for (const name of VIEWS) {
    $(name).hidden = view !== name;
    $(`tab-${name}`).setAttribute("aria-selected", view === name);
    $(`tab-${name}`).tabIndex = view === name ? 0 : -1;
  }
}

function show() {
  wanted = null;
  if (view === "films" && !store.about.films.length && !store.live) view = "videos";
  store.counted = null;
  showLife();
  showFigures();
  showTools();
  showView();
  if (view === "run") charts.soon();
  else if (view === "films") films.show();
  else showVideos();
  detail.update();
}

function soon() {
  wanted ??= requestAnimationFrame(show);
}

// Address

function address(push = false) {
  const {q, states, marks, model, sort} = store.look;
  const params = new URLSearchParams();
  if (view !== "videos") params.set("view", view);
  if (q) params.set("q", q);
  if (states.size) params.set("state", [...states].join(","));
  if (marks.size) params.set("mark", [...marks].join(","));
  if (model) params.set("model", model);
  if (sort !== "order") params.set("sort", sort);
  if (detail.card) params.set("job", detail.card.n);
  try {
    history[push ? "pushState" : "replaceState"](null, "", `#${params}`);
  } catch { /* refused if called too often, or blocked */ }
}

function readAddress() {
  const params = new URLSearchParams(location.hash.slice(1));
  view = VIEWS.includes(params.get("view")) ? params.get("view") : "videos";
  store.look = {
    q: params.get("q") ?? "",
    states: new Set((params.get("state") ?? "").split(",").filter((state) => Object.hasOwn(STATES, state))),
    marks: new Set((params.get("mark") ?? "").split(",").filter((mark) => Object.hasOwn(MARKS, mark))),
    model: params.get("model") ?? "",
    sort: params.get("sort") ?? "order",
  };
  show();
  const card = store.cards.get(Number(params.get("job") ?? NaN));
  if (card) detail.show(card);
  else if (detail.card) detail.dialog.close();
}

function openCard(card, film = null, play = false) {
  if (view !== "videos") grid.show(store.seen());
  detail.show(card, film, play);
  address(true);
}

// Marks

const markOf = (key) => Object.keys(MARKS).find((mark) => mark[0] === key.toLowerCase());

function say(text) {
  for (const node of document.querySelectorAll(".said")) setText(node, text);
}

// Mark a video, or take the same mark away again. Shown at once, and taken back if it cannot be kept.
async function markCard(card, name) {
  card = store.cards.get(card.n);
  if (!store.about.marks || !card?.id) return;
  const before = card.mark, asked = {mark: before === name ? null : name};
  const put = (changes) => {
    store.apply([{...store.cards.get(card.n), ...changes}]);
    soon();
  };
  store.asked.set(card.n, asked);
  put(asked);
  say("");
  let changes = {mark: before};
  try {
    const answer = await fetch("marks", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({n: card.n, ...asked})});
    if (!answer.ok) throw new Error(await answer.text());
    changes = {...asked, ...await answer.json()};
  } catch (error) {
    say(`The mark was not kept: ${error.message}`);
  }
  // A later mark of the same video has its own answer.
  if (store.asked.get(card.n) !== asked) return;
  store.asked.delete(card.n);
  put(changes);
}

// Input

function look(change) {
  Object.assign(store.look, change);
  grid.cursor = 0;
  show();
  address();
}

$("q").addEventListener("input", () => look({q: $("q").value}));
$("model").addEventListener("change", () => look({model: $("model").value}));
$("sort").addEventListener("change", () => look({sort: $("sort").value}));
$("tools").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => look({q: "", states: new Set(), marks: new Set(), model: ""}));
for (const kind of ["states", "marks"]) {
  $(kind).addEventListener("click", (event) => {
    const name = event.target.closest("button")?.dataset.name;
    if (!name) return;
    const chosen = new Set(store.look[kind]);
    if (!chosen.delete(name)) chosen.add(name);
    look({[kind]: chosen});
  });
}
for (const name of VIEWS) {
  $(`tab-${name}`).addEventListener("click", () => {
    view = name;
    show();
    address();
  });
}
document.querySelector(".views").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  const there = VIEWS.filter((name) => !$(`tab-${name}`).hidden);
  const step = event.key === "ArrowLeft" ? -1 : 1;
  const other = $(`tab-${there.at((there.indexOf(view) + step) % there.length)}`);
  other.click();
  other.focus();
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || detail.card) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    if (view !== "videos") $("tab-videos").click();
    $("q").select();
  } else if (event.target === $("q") && event.key === "Escape" && $("q").value) {
    event.preventDefault();
    look({q: ""});
  } else if (event.target === $("q") && event.key === "ArrowDown") {
    event.preventDefault();
    grid.focus(0);
  }
});
addEventListener("popstate", readAddress);
addEventListener("hashchange", readAddress);
readAddress();

// Events of the server

if (data.live) {
  const source = new EventSource("events");
  const on = (kind, act) => source.addEventListener(kind, (event) => {
    act(JSON.parse(event.data));
    soon();
  });
  source.onopen = () => { store.about.lost = false; soon(); };
  source.onerror = () => { store.about.lost = true; soon(); };
  on("cards", (cards) => store.apply(cards));
  on("about", (about) => Object.assign(store.about, about, {live: true}));
  on("end", (kept) => {
    Object.assign(store.about, {over: true, kept});
    source.close();
  });
}
