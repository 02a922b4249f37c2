// Dialog of one job: input and video side by side, and every known fact.

class Detail {
  constructor(store, {neighbour, place, mark, closed}) {
    this.store = store;
    this.dialog = $("detail");
    this.neighbour = neighbour;
    this.place = place;
    this.card = null;
    this.film = null;
    const step = (by) => {
      const card = this.neighbour(this.card, by);
      const video = this.pair.querySelector("video");
      if (card) this.show(card, this.film, Boolean(this.film && video && !video.paused));
    };
    const button = (name, label, act, keys) =>
      element("button", {class: "quiet", type: "button", "aria-label": label, title: label, "aria-keyshortcuts": keys, onclick: act}, icon(name));
    this.title = element("h2", {id: "detail-title", dir: "auto", tabindex: -1});
    this.state = element("span", {class: "state"});
    this.position = element("span", {class: "position"});
    this.previous = button("previous", "Previous", () => step(-1), "ArrowLeft");
    this.next = button("next", "Next", () => step(1), "ArrowRight");
    const close = button("close", "Close", () => this.dialog.close(), "Escape");
    this.body = element("div", {class: "body"});
    this.pair = element("div", {class: "pair"});
    this.marks = element("div", {class: "marks", role: "group", "aria-label": "Mark"}, ...Object.entries(MARKS).map(([name, word]) =>
      element("button", {type: "button", class: `is-${name}`, "data-mark": name, "aria-keyshortcuts": name[0], onclick: () => mark(this.card, name)}, icon(name), word, element("kbd", {"aria-hidden": true}, name[0].toUpperCase()))));
    const said = element("p", {class: "said", role: "status"});
    this.dialog.append(element("div", {class: "head"}, this.title, this.state, this.position, this.previous, this.next, close), said, this.body);
    this.dialog.addEventListener("close", () => {
      const {card, film} = this;
      this.pair.replaceChildren();
      this.card = this.film = this.looks = null;
      closed(card, film);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("video")) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else if (markOf(event.key)) mark(this.card, markOf(event.key));
      else if (event.key === " " && !event.target.closest("button")) this.toggle();
      else return;
      event.preventDefault();
    });
  }

  toggle() {
    const video = this.pair.querySelector("video");
    if (video?.paused) video.play().catch(() => {});
    else video?.pause();
  }

  // Show a card; with a film, as one of its clips, which leads on to the next one at its end.
  show(card, film = null, play = false) {
    this.card = card;
    this.film = film;
    if (!this.dialog.open) this.dialog.showModal();
    this.fill();
    this.dialog.scrollTop = 0;
    this.title.focus({preventScroll: true});
    if (play) this.pair.querySelector("video")?.play().catch(() => {});
  }

  // Play the next clip of the film that has a video.
  lead() {
    let card = this.card;
    do card = this.neighbour(card, 1);
    while (card && !card.video);
    if (card) this.show(card, this.film, true);
  }

  // Show changes of the card without restarting its video.
  update() {
    if (!this.card) return;
    const card = this.store.cards.get(this.card.n);
    if (!card || (card === this.card && !this.store.live)) return;
    this.card = card;
    this.fill();
  }

  fill() {
    const {card, store} = this;
    setText(this.title, card.name);
    this.state.className = `state of-${card.state}`;
    this.state.replaceChildren(element("span", {class: "dot"}), capitalized(card.label));
    setText(this.position, this.place(card));
    for (const button of this.marks.children) button.setAttribute("aria-pressed", card.mark === button.dataset.mark);
    this.previous.disabled = !this.neighbour(card, -1);
    this.next.disabled = !this.neighbour(card, 1);
    this.fillPair(card);
    const held = document.activeElement;
    const asked = element("div", {}, element("h3", {}, "Prompt"), element("p", {class: "prompt", dir: "auto"}, card.prompt || "Unknown: the ledger does not have it."), ...labels(card));
    const known = element("div", {}, ...this.times(card), facts(card));
    const marks = store.about.marks && card.id ? [this.marks] : card.mark ? [element("p", {class: `marked is-${card.mark}`}, icon(card.mark), MARKS[card.mark])] : [];
    this.body.replaceChildren(this.pair, ...marks, ...trouble(card), element("div", {class: "columns"}, asked, known));
    // Elements that were there before keep the focus.
    if (held !== document.activeElement && this.dialog.contains(held)) held.focus({preventScroll: true});
  }

  fillPair(card) {
    const looks = JSON.stringify([card.n, this.film?.name, card.image, card.end, card.video, card.state === "saved" || card.state]);
    if (looks === this.looks) return;
    this.looks = looks;
    const figures = [inputFigure("Input", card.image, card.follows)];
    if (card.end) figures.push(inputFigure("Last frame", card.end));
    figures.push(this.videoFigure(card));
    this.pair.replaceChildren(...figures);
  }

  videoFigure(card) {
    let shown;
    if (card.video) {
      shown = element("video", {src: card.video, controls: true, loop: !this.film, playsinline: true, preload: "auto", poster: card.image?.poster, "aria-label": `Video of ${card.name}`});
      if (this.film) shown.addEventListener("ended", () => this.lead());
      shown.addEventListener("error", () => shown.replaceWith(element("p", {}, this.store.about.over ? "The run has ended. The kept page has the video." : "The video cannot be played. Has the file moved?")), {once: true});
    } else {
      const why = {
        waiting: "Waiting for its turn.", running: "Being generated.", unsaved: "Not saved.",
        saved: "Not on this computer.", failed: "No video.", uncertain: "Not known yet.", skipped: "Never sent.",
      };
      shown = element("p", {}, why[card.state]);
    }
    const save = card.video ? element("a", {class: "save", href: card.video, download: card.file ?? "", title: "Download"}, icon("download"), "Download") : null;
    return figure("Video", [card.file, size(card.bytes)].filter(Boolean).join(", "), shown, save);
  }

  times(card) {
    const phases = this.store.phases(card);
    const parts = [["waiting", "Waiting"], ["running", "Generating"], ["unsaved", "Downloading"]]
      .map(([state, word], place) => ({state, word, seconds: phases[place]})).filter(({seconds}) => seconds !== null);
    if (!parts.length) return [];
    const strip = element("div", {class: "phases", "aria-hidden": "true"}, ...parts.map(({state, seconds}) => {
      const part = element("i", {class: `of-${state}`});
      part.style.flexGrow = Math.max(seconds, 0.01);
      return part;
    }));
    const list = element("div", {class: "phase-list"}, ...parts.map(({state, word, seconds}) =>
      element("span", {class: `of-${state}`}, element("span", {class: "dot"}), word, element("b", {}, span(seconds)))));
    return [element("h3", {}, "Time"), strip, list];
  }
}

function figure(name, label, shown, beside = null) {
  const caption = element("figcaption", {}, element("b", {}, name), label ? element("span", {dir: "auto", title: label}, label) : null, beside);
  return element("figure", {}, caption, element("div", {class: "frame"}, shown));
}

function inputFigure(name, picture, follows = null) {
  const source = picture?.full ?? picture?.poster;
  let shown;
  if (source) {
    shown = element("img", {src: source, alt: picture.label ? `${name}: ${picture.label}` : name});
    shown.addEventListener("error", () => {
      // If the file has moved, show the small copy in the gallery's folder.
      if (picture.poster && shown.getAttribute("src") !== picture.poster) shown.src = picture.poster;
      else shown.replaceWith(element("p", {}, "The image file is gone."));
    });
  } else if (picture?.label.includes("://")) {
    shown = element("p", {}, "The image is on the web, and this page loads nothing from there.");
  } else if (follows !== null) shown = element("p", {dir: "auto"}, `The last frame of ${follows}.`);
  else shown = element("p", {}, picture ? "The image cannot be shown." : "The image was given as bytes, which a ledger does not keep.");
  return figure(name, picture?.label, shown);
}

function trouble(card) {
  const of = card.trouble;
  if (!of) return [];
  const rows = [["Money", sentence(of.spent)], ["Error", of.kind, "mono"]];
  if (of.advice) rows.unshift(["What to do", sentence(of.advice)]);
  const list = element("dl", {}, ...rows.flatMap(([name, text, kind]) => [element("dt", {}, name), element("dd", {dir: "auto", class: kind}, text)]));
  return [element("div", {class: `trouble of-${card.state}`}, element("h3", {dir: "auto"}, sentence(of.message)), list)];
}

const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

function facts(card) {
  const [begun] = card.times;
  const price = card.cost === null ? card.id ? "unknown" : "" : money(card.cost);
  const rows = [
    ["Model", card.model + (card.provider && card.provider !== "wavespeed" ? ` at ${card.provider}` : "")],
    ["Length", card.seconds ? `${card.seconds} s` : ""],
    ["Price", price],
    ...Object.entries(card.settings),
    ["Batch", card.batch],
    ["Key", card.name === card.key ? "" : card.key, "mono"],
    ["Prediction", card.id, "mono"],
    ["Attempts", card.attempts > 1 ? String(card.attempts) : ""],
    ["Started", begun === null ? "" : moment(begun)],
    ["Note", card.note],
  ].filter(([, value]) => value);
  const list = rows.flatMap(([name, value, kind]) => [element("dt", {}, name), element("dd", {dir: "auto", class: kind}, value, name === "Prediction" ? copyButton(value) : null)]);
  return element("dl", {class: "facts-list"}, ...list);
}

function labels(card) {
  if (!card.labels) return [];
  const list = card.labels.flatMap(([name, value]) => [element("dt", {dir: "auto"}, name), element("dd", {dir: "auto"}, value)]);
  return [element("h3", {}, "Labels"), element("dl", {class: "facts-list labels"}, ...list)];
}

function copyButton(text) {
  const button = element("button", {type: "button", class: "copy", "aria-label": "Copy id", title: "Copy id"}, icon("copy", 14));
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied.");
    } catch {
      // Not allowed here: select it, so that the keyboard can copy it.
      getSelection().selectAllChildren(button.parentNode);
      say("Selected: copy it with the keyboard.");
    }
  });
  return button;
}
