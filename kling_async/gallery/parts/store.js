// Data of the run, and the current filter.

class Store {
  constructor(data) {
    this.cards = new Map();
    this.about = data;
    // Marks that were given and not answered yet, by card.
    this.asked = new Map();
    this.look = {q: "", states: new Set(), marks: new Set(), model: "", sort: "order"};
    this.apply(data.cards);
  }

  apply(cards) {
    for (const card of cards) {
      // The answer to a mark may overtake an event from before it.
      if (card.v < this.cards.get(card.n)?.v) continue;
      if (this.asked.has(card.n)) card.mark = this.asked.get(card.n).mark;
      const trouble = card.trouble ? `${card.trouble.kind} ${card.trouble.message}` : "";
      const labels = (card.labels ?? []).map(([name, value]) => `${name}: ${value}`);
      card.text = [card.name, card.key, card.prompt, card.model, card.id ?? "", trouble, ...labels].join("\n").toLowerCase();
      this.cards.set(card.n, card);
    }
    this.counted = null;
  }

  // A page of an earlier run is served to be marked, and nothing on it runs.
  get live() { return this.about.live && !this.about.past; }

  // Seconds of waiting, generating and downloading; null if unknown.
  phases(card) {
    const [begun, accepted, ended, saved] = card.times;
    const open = this.live ? this.about.now : null;
    const until = (from, to, running) => {
      if (from === null) return null;
      const end = to ?? (running ? open : null);
      return end === null ? null : Math.max(0, end - from);
    };
    return [
      until(begun, accepted, card.state === "waiting"),
      until(accepted, ended ?? saved, card.state === "running"),
      ended === null ? null : until(ended, saved, card.state === "unsaved" && !card.finished),
    ];
  }

  // Cards that match the filter, in the chosen order.
  seen() {
    const {q, states, marks, model, sort} = this.look;
    const words = q.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (const card of this.cards.values()) {
      if (states.size && !states.has(card.state)) continue;
      if (marks.size && !marks.has(card.mark)) continue;
      if (model && card.model !== model) continue;
      if (words.every((word) => card.text.includes(word))) found.push(card);
    }
    const last = (card) => card.times[3] ?? card.times[2] ?? -1;
    const took = (card) => made(card) ? this.phases(card)[1] ?? -1 : -1;
    const names = new Intl.Collator(undefined, {numeric: true});
    const orders = {
      order: (a, b) => a.n - b.n,
      latest: (a, b) => last(b) - last(a) || a.n - b.n,
      slowest: (a, b) => took(b) - took(a) || a.n - b.n,
      key: (a, b) => names.compare(a.name, b.name) || a.n - b.n,
    };
    return found.sort(orders[sort] ?? orders.order);
  }

  // Figures of the whole run, computed again only after a change.
  get figures() {
    if (this.counted) return this.counted;
    const counts = Object.fromEntries(Object.keys(STATES).map((state) => [state, 0]));
    const marks = Object.fromEntries(Object.keys(MARKS).map((mark) => [mark, 0]));
    const models = new Map();
    const times = [];
    let spent = 0, unpriced = 0, first = Infinity, last = -Infinity;
    for (const card of this.cards.values()) {
      counts[card.state] += 1;
      if (card.mark) marks[card.mark] += 1;
      if (card.cost !== null) spent += card.cost;
      else if (card.id) unpriced += 1;
      for (const at of card.times) {
        if (at === null) continue;
        if (at < first) first = at;
        if (at > last) last = at;
      }
      let model = models.get(card.model);
      if (!model) models.set(card.model, model = {model: card.model, jobs: 0, made: 0, failed: 0, spent: 0, unpriced: 0, times: []});
      model.jobs += 1;
      model.spent += card.cost ?? 0;
      model.unpriced += card.cost === null && card.id ? 1 : 0;
      model.failed += card.state === "failed" ? 1 : 0;
      if (made(card)) {
        model.made += 1;
        const took = this.phases(card)[1];
        if (took !== null) {
          model.times.push(took);
          times.push(took);
        }
      }
    }
    const ascending = (a, b) => a - b;
    times.sort(ascending);
    for (const model of models.values()) model.times.sort(ascending);
    const shown = this.cards.size + this.about.dropped;
    this.counted = {
      counts, marks, spent, unpriced, times, first, last, shown,
      total: Math.max(this.about.total ?? 0, shown),
      models: [...models.values()].sort((a, b) => b.jobs - a.jobs || (a.model < b.model ? -1 : 1)),
    };
    return this.counted;
  }
}

// True if the service has made the video.
const made = (card) => card.state === "saved" || card.state === "unsaved";
