// Films: the clips of each as a strip, in the order in which they play through.

class Films {
  constructor(store, open) {
    this.store = store;
    this.box = $("films");
    this.strips = new Map();
    // Only strips near the screen have tiles, so that a thousand films cost as little as ten.
    this.near = new IntersectionObserver((seen) => {
      for (const {target, isIntersecting} of seen) {
        target.near = isIntersecting;
        this.fill(target);
      }
    }, {rootMargin: "400px"});
    this.box.addEventListener("click", (event) => {
      const strip = event.target.closest(".film");
      const tile = event.target.closest(".tile");
      if (tile) open(tile.card, strip.film);
      else if (event.target.closest(".play")) open(this.clips(strip.film).find((card) => card.video), strip.film, true);
    });
  }

  clips(film) {
    return film.clips.map((n) => this.store.cards.get(n)).filter(Boolean);
  }

  show() {
    const {films} = this.store.about;
    const names = new Set(films.map(({clips}) => clips.join()));
    for (const [name, strip] of this.strips) {
      if (names.has(name)) continue;
      this.near.unobserve(strip);
      strip.remove();
      this.strips.delete(name);
    }
    let after = null;
    for (const film of films.toReversed()) {
      const name = film.clips.join();
      let strip = this.strips.get(name);
      if (!strip) this.strips.set(name, strip = makeStrip());
      strip.film = film;
      this.fill(strip);
      if (strip.parentNode !== this.box || strip.nextSibling !== after) this.box.insertBefore(strip, after);
      this.near.observe(strip);
      after = strip;
    }
  }

  fill(strip) {
    const cards = this.clips(strip.film);
    const {name, facts, missing, play, list} = strip.parts;
    const videos = cards.filter((card) => card.video).length;
    setText(name, strip.film.name);
    setText(facts, [plural(cards.length, "clip"), span(cards.reduce((sum, card) => sum + (card.seconds ?? 0), 0))].join(", "));
    setText(missing, videos < cards.length ? `${number(cards.length - videos)} without a video` : "");
    play.disabled = !videos;
    const held = list.contains(document.activeElement);
    if (!strip.near && !held) list.replaceChildren();
    else cards.forEach((card, place) => {
      const tile = list.children[place] ?? list.appendChild(makeTile());
      fillTile(tile, card, this.store);
      tile.button.tabIndex = 0;
    });
  }

  focus(card, film) {
    const tiles = this.strips.get(film.clips.join())?.parts.list.children ?? [];
    [...tiles].find((tile) => tile.card.n === card.n)?.button.focus();
  }
}

function makeStrip() {
  const name = element("h2", {dir: "auto"}), facts = element("span", {class: "dim"}), missing = element("span", {class: "lack"});
  const play = element("button", {type: "button", class: "plain play"}, icon("play", 14), "Play", element("span", {class: "hidden"}, " the film"));
  const list = element("div", {class: "strip", role: "list", "aria-label": "Clips"});
  return Object.assign(element("article", {class: "film"}, element("div", {class: "over"}, name, facts, missing, play), list), {parts: {name, facts, missing, play, list}});
}
