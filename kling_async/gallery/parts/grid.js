// Grid of the videos. Only tiles on the screen are elements, so that five thousand cost as little as fifty.

// Pixels; ROWS_BEYOND are rows laid out above and below the screen.
const NARROW = 148, WIDE = 232, GAP = 20, CAPTION = 70, ROWS_BEYOND = 2;

class Grid {
  constructor(store, open, mark) {
    this.store = store;
    this.open = open;
    this.mark = mark;
    this.box = $("grid");
    this.cards = [];
    this.tiles = new Map();
    this.cursor = 0;
    this.preview = new Preview();
    new ResizeObserver(() => this.place()).observe(this.box);
    addEventListener("scroll", () => this.place(), {passive: true});
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.open(tile.card);
    });
    this.box.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.cursor = this.cards.indexOf(tile.card);
      if (tile && event.target.matches(":focus-visible")) this.preview.show(tile);
    });
    this.box.addEventListener("focusout", () => this.preview.hide());
    this.box.addEventListener("pointerover", (event) => {
      const tile = event.target.closest(".tile");
      if (event.pointerType === "mouse" && tile) this.preview.show(tile);
    });
    this.box.addEventListener("pointerleave", () => this.preview.hide());
  }

  show(cards) {
    const focused = this.cards[this.cursor];
    this.cards = cards;
    const place = focused ? cards.findIndex((card) => card.n === focused.n) : 0;
    this.cursor = Math.max(0, place);
    this.place(true);
  }

  // Lay out the visible tiles; with `again`, also those already laid out.
  place(again = false) {
    const width = this.box.clientWidth;
    if (!width) return;
    const columns = Math.max(2, Math.floor((width + GAP) / ((width < 560 ? NARROW : WIDE) + GAP)));
    const wide = Math.floor((width - GAP * (columns - 1)) / columns);
    const tall = Math.round(wide * 3 / 4) + CAPTION + GAP;
    again ||= columns !== this.columns || wide !== this.wide;
    Object.assign(this, {columns, wide, tall});
    this.box.style.height = `${Math.ceil(this.cards.length / columns) * tall}px`;
    const above = -this.box.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(above / tall) - ROWS_BEYOND) * columns;
    const last = Math.min(this.cards.length, (Math.ceil((above + innerHeight) / tall) + ROWS_BEYOND) * columns);
    const held = this.box.contains(document.activeElement) ? this.cursor : -1;
    const wanted = new Map();
    for (let place = first; place < last; place++) wanted.set(this.cards[place].n, place);
    // Keep the focused tile, however far away, so that the keyboard continues from it.
    if (held >= 0 && held < this.cards.length) wanted.set(this.cards[held].n, held);
    for (const [n, tile] of this.tiles) {
      if (wanted.has(n)) continue;
      tile.remove();
      this.tiles.delete(n);
    }
    for (const [n, place] of wanted) {
      let tile = this.tiles.get(n);
      if (!tile) this.tiles.set(n, tile = makeTile());
      else if (!again && tile.place === place) continue;
      fillTile(tile, this.cards[place], this.store);
      tile.place = place;
      tile.style.width = `${wide}px`;
      tile.style.transform = `translate(${place % columns * (wide + GAP)}px, ${Math.floor(place / columns) * tall}px)`;
      tile.setAttribute("aria-posinset", place + 1);
      tile.setAttribute("aria-setsize", this.cards.length);
    }
    this.order(wanted);
    for (const tile of this.tiles.values()) tile.button.tabIndex = tile.place === this.cursor ? 0 : -1;
    if (!this.tiles.has(this.cards[this.cursor]?.n) && this.tiles.size) this.tiles.values().next().value.button.tabIndex = 0;
  }

  // Screen readers follow the order of the elements. A moved element loses its focus, so the focused one is not moved.
  order(wanted) {
    const sorted = [...wanted].sort((a, b) => a[1] - b[1]).map(([n]) => this.tiles.get(n));
    let after = null;
    for (const tile of sorted.reverse()) {
      if (tile.parentNode !== this.box || (tile.nextSibling !== after && !tile.contains(document.activeElement))) {
        this.box.insertBefore(tile, after);
      }
      after = tile;
    }
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(innerHeight / this.tall)) * this.columns;
    const steps = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
    };
    const mark = markOf(event.key);
    if (mark && event.target.closest(".tile")) {
      event.preventDefault();
      this.mark(event.target.closest(".tile").card, mark);
      return;
    }
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    this.focus(this.cursor + step);
  }

  focus(place) {
    if (!this.cards.length) return;
    const to = Math.max(0, Math.min(this.cards.length - 1, place));
    const top = Math.floor(to / this.columns) * this.tall + this.box.getBoundingClientRect().top;
    const over = $("tools").getBoundingClientRect().bottom + 8;
    if (top < over) scrollBy(0, top - over);
    else if (top + this.tall > innerHeight) scrollBy(0, top + this.tall - innerHeight);
    this.cursor = to;
    this.place();
    // The tile may not have been laid out yet.
    if (!this.tiles.has(this.cards[to].n)) this.place(true);
    this.tiles.get(this.cards[to].n)?.button.focus({preventScroll: true});
  }
}

function makeTile() {
  const mat = element("span", {class: "mat"});
  const [key, time, prompt, state, word, facts, cost] = Array.from({length: 7}, () => element("span"));
  word.className = "hidden";
  key.className = "cut key"; time.className = "dim"; prompt.className = "cut dim"; facts.className = "cut";
  key.dir = prompt.dir = "auto";
  const low = element("span", {class: "facts"}, state, word, facts, cost);
  const caption = element("span", {class: "caption"}, element("span", {}, key, time), element("span", {}, prompt), low);
  const button = element("button", {type: "button", tabindex: -1}, mat, caption);
  const tile = element("div", {class: "tile", role: "listitem"}, button);
  return Object.assign(tile, {button, mat, parts: {key, time, prompt, state, word, facts, cost, low}});
}

function fillTile(tile, card, store) {
  tile.card = card;
  const {key, time, prompt, state, word: said, facts, cost, low} = tile.parts;
  const [, generating] = store.phases(card);
  const word = capitalized(card.label);
  const unusual = card.state !== "saved";
  setText(key, card.name);
  setText(time, span(generating));
  setText(prompt, card.prompt || card.image?.label || "");
  setText(facts, unusual ? brief(card.trouble?.message) ?? (card.note || word) : [card.seconds ? `${card.seconds} s` : "", card.model].filter(Boolean).join(", "));
  setText(cost, unusual || card.cost === null ? "" : money(card.cost));
  state.className = "dot";
  state.hidden = !unusual;
  low.className = unusual ? `facts of-${card.state}` : "facts";
  facts.className = card.state === "failed" || card.state === "uncertain" ? "cut message" : "cut";
  // What is shown is the name of the button; this is what only colours and icons say.
  setText(said, [word, MARKS[card.mark]].filter(Boolean).join(", "));
  fillMat(tile, card);
}

// Omit the common beginning of failure messages; the dialog has the full text.
const brief = (message) => message?.replace(/^the prediction ended as \S+?(?: with code \d+)?: /, "");

// Show the small copy of the input, the input itself, or the first frame of the video.
function fillMat(tile, card) {
  tile.button.className = `of-${card.state}`;
  const poster = card.image?.poster ?? card.image?.full;
  const looks = `${card.state} ${card.mark} ${poster ?? ""} ${card.video ?? ""}`;
  if (tile.looks === looks) return;
  tile.looks = looks;
  const parts = [];
  if (poster) parts.push(element("img", {src: poster, alt: "", decoding: "async", draggable: "false"}));
  else if (card.video) {
    const still = element("video", {src: `${card.video}#t=0.001`, preload: "metadata", tabindex: -1, playsinline: true});
    still.muted = true;
    parts.push(still);
  }
  if (card.state === "running" || (card.state === "unsaved" && !card.finished)) parts.push(element("span", {class: "line"}));
  if (card.state === "failed" || card.state === "uncertain") parts.push(element("span", {class: "mark"}, icon(card.state, 28)));
  if (card.mark) parts.push(element("span", {class: `badge is-${card.mark}`}, icon(card.mark, 14)));
  tile.mat.replaceChildren(...parts);
}

// One player for all tiles, moved to the tile under the pointer or with the focus.
class Preview {
  constructor() {
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.video = element("video", {class: "preview", preload: "auto", tabindex: -1, playsinline: true, "aria-hidden": "true"});
    this.video.muted = this.video.loop = true;
    this.video.addEventListener("playing", () => this.video.classList.add("playing"));
  }

  show(tile) {
    if (this.tile === tile) return;
    this.hide();
    if (this.calm.matches || !tile.card.video || tile.card.state !== "saved") return;
    this.tile = tile;
    // Delayed, so that a passing pointer starts nothing.
    this.timer = setTimeout(() => {
      this.video.src = tile.card.video;
      tile.mat.append(this.video);
      this.video.play().catch(() => {});
    }, 90);
  }

  hide() {
    clearTimeout(this.timer);
    this.tile = null;
    this.video.classList.remove("playing");
    if (!this.video.hasAttribute("src")) return;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
  }
}
