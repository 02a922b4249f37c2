// Words, formats and elements. Text is only ever set as text: nothing from a manifest, a file name or a service is parsed
// as HTML.

const STATES = {
  waiting: "Waiting", running: "Running", unsaved: "Unsaved", saved: "Saved", failed: "Failed", uncertain: "Uncertain", skipped: "Skipped",
};
const MARKS = {good: "Good", bad: "Bad", again: "Again"};
const capitalized = (word) => word[0].toUpperCase() + word.slice(1);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = name in SHAPES ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}
const SHAPES = Object.fromEntries(["svg", "path", "line", "rect", "text", "g", "circle"].map((name) => [name, true]));

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const number = (count) => count.toLocaleString("en");
const money = (usd) => `$${usd.toLocaleString("en", {minimumFractionDigits: 2, maximumFractionDigits: usd < 1 ? 3 : 2})}`;
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

function span(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  const pad = (part) => String(part).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${pad(whole % 60)}`;
  return `${Math.floor(whole / 3600)}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
}

function size(bytes) {
  if (bytes === null) return "";
  return bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(bytes / 1e3))} KB`;
}

const moment = (at) => new Date(at * 1000).toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});

function quantile(sorted, share) {
  if (!sorted.length) return null;
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  return sorted[below] + (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]) * (place - below);
}

const ICONS = {
  close: "M4 4l8 8M12 4l-8 8",
  previous: "M10 3L5 8l5 5",
  play: "M5 3.500v9l7.500-4.500z",
  next: "M6 3l5 5-5 5",
  good: "M3 8.500l3.200 3.200L13 5",
  bad: "M4 4l8 8M12 4l-8 8",
  again: "M12.500 6A5 5 0 103 8.500M12.500 2.500V6H9",
  copy: "M5.500 5.500V3h7.500v7.500h-2.500M3 5.500h7.500V13H3z",
  download: "M8 2v8M4.500 7L8 10.500 11.500 7M3 13.500h10",
  light: "M8 5a3 3 0 100 6 3 3 0 000-6zM8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1",
  dark: "M13.5 9.6A5.8 5.8 0 016.4 2.5a5.8 5.8 0 107.1 7.1z",
  auto: "M8 2a6 6 0 100 12A6 6 0 008 2zM8 2v12M8 5h5M8 8h6M8 11h5",
  failed: "M8 2a6 6 0 100 12A6 6 0 008 2zM8 5v3.6M8 10.8v.2",
  uncertain: "M8 2a6 6 0 100 12A6 6 0 008 2zM6.3 6.4c.1-2.3 3.4-2.2 3.4-.1 0 1.300-1.700 1.300-1.700 2.700M8 11v.2",
};

function icon(name, pixels = 16) {
  const path = element("path", {
    d: ICONS[name], fill: "none", stroke: "currentColor", "stroke-width": 1.4, "stroke-linecap": "round", "stroke-linejoin": "round",
  });
  return element("svg", {viewBox: "0 0 16 16", width: pixels, height: pixels, "aria-hidden": "true"}, path);
}
