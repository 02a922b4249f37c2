"use strict";
const $ = (id) => document.getElementById(id);
const STEPS = ["waiting", "submitting", "running", "completed"];
const MOST_REMEMBERED = 20;
let models = [];
let began = 0;
let source = null;

// ---- form ----

async function loadModels() {
  models = await (await fetch("models")).json();
  $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  showLengths();
}

function showLengths() {
  const { prices } = models.find((model) => model.name === $("model").value);
  $("duration").replaceChildren(...Object.keys(prices).map((seconds) => new Option(`${seconds} s`, seconds)));
  showPrice();
}

function showPrice() {
  $("negative").hidden = !models.find((model) => model.name === $("model").value).negative;
  const { prices } = models.find((model) => model.name === $("model").value);
  $("price").textContent = `for ${prices[$("duration").value]}`;
}

function showPicture() {
  const [picture] = $("file").files;
  $("hint").hidden = Boolean(picture);
  $("preview").hidden = !picture;
  if (!picture) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(picture);
}

async function submit(event) {
  event.preventDefault();
  const [picture] = $("file").files;
  const params = { prompt: $("prompt").value, model: $("model").value, duration: $("duration").value };
  if (!$("negative").hidden && $("negative-prompt").value.trim()) params.negative_prompt = $("negative-prompt").value;
  $("go").disabled = true;
  setStatus("Uploading the picture …");
  try {
    const reply = await fetch(`videos?${new URLSearchParams(params)}`, {
      method: "POST", body: picture, headers: { "Content-Type": picture.type },
    });
    const answer = await reply.json();
    if (!reply.ok) return fail(answer);
    // The address leads back to the job after a reload.
    history.replaceState(null, "", `#${answer.key}`);
    remember(answer.key, params.prompt);
    follow(answer.key);
  } catch {
    fail({ title: "The studio cannot be reached." });
  } finally {
    $("go").disabled = false;
  }
}

// ---- job ----

function follow(key) {
  source?.close();
  began = Date.now();
  $("video").hidden = true;
  $("video").removeAttribute("src");
  $("download").hidden = true;
  $("empty").hidden = $("steps").hidden = $("keep").hidden = false;
  $("empty").textContent = "Your video is being made.";
  $("stage").classList.add("busy");
  setStatus("0 s");
  // Reconnects by itself with the id of the last event.
  source = new EventSource(`videos/${encodeURIComponent(key)}/events`);
  source.addEventListener("status", (event) => showState(key, JSON.parse(event.data)));
  source.addEventListener("end", () => source.close());
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) fail({ title: "There is no such video." });
  });
}

function showState(key, status) {
  const step = status.state === "waiting" && status.status === "submitting" ? "submitting" : status.state;
  const place = STEPS.indexOf(step);
  for (const item of $("steps").children) {
    const its = STEPS.indexOf(item.dataset.step);
    item.className = its < place || step === "completed" ? "done" : its === place ? "now" : "";
  }
  if (status.state === "completed") {
    stopWaiting();
    $("empty").hidden = true;
    $("video").hidden = false;
    $("video").src = $("download").href = `videos/${encodeURIComponent(key)}/video`;
    $("download").download = `${key}.mp4`;
    $("download").hidden = false;
    $("video").play().catch(() => {});
    setStatus("Here it is.");
  } else if (status.state === "failed" || status.state === "uncertain") {
    fail(status.error ?? { title: "The video could not be made." });
  }
}

function stopWaiting() {
  began = 0;
  $("stage").classList.remove("busy");
  $("keep").hidden = true;
}

function fail(problem) {
  stopWaiting();
  $("empty").hidden = false;
  $("empty").textContent = "There is no video.";
  $("steps").hidden = true;
  const fields = (problem.errors ?? []).map((one) => `${one.path}: ${one.message}`);
  const detail = typeof problem.detail === "string" ? problem.detail : "";
  const parts = [problem.title ?? "The video could not be made", ...(fields.length ? fields : [detail]), problem.advice];
  setStatus(parts.filter(Boolean).join(" – "), true);
}

function setStatus(text, bad = false) {
  $("status").textContent = text;
  $("status").className = bad ? "bad" : "";
}

// ---- earlier videos, which this browser alone remembers ----

function earlier() {
  try {
    return JSON.parse(localStorage.getItem("earlier")) ?? [];
  } catch {
    return [];
  }
}

function remember(key, prompt) {
  const others = earlier().filter((one) => one.key !== key);
  store([{ key, prompt, at: Date.now() }, ...others].slice(0, MOST_REMEMBERED));
}

function store(list) {
  try {
    localStorage.setItem("earlier", JSON.stringify(list));
  } catch {
    // A browser that keeps nothing has no list.
  }
  showEarlier();
}

function showEarlier() {
  const list = earlier();
  $("history").hidden = !list.length;
  $("earlier").replaceChildren(...list.map(({ key, prompt, at }) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `#${encodeURIComponent(key)}`;
    link.textContent = prompt || key;
    const time = document.createElement("time");
    time.textContent = new Date(at).toLocaleString();
    item.append(link, time);
    return item;
  }));
}

setInterval(() => {
  if (began) setStatus(`${Math.round((Date.now() - began) / 1000)} s`);
}, 1000);

$("form").addEventListener("submit", submit);
$("file").addEventListener("change", showPicture);
$("preview").addEventListener("error", () => ($("hint").hidden = !($("preview").hidden = true)));
$("model").addEventListener("change", showLengths);
$("duration").addEventListener("change", showPrice);
for (const name of ["dragenter", "dragleave", "drop"]) {
  $("drop").addEventListener(name, () => $("drop").classList.toggle("over", name === "dragenter"));
}
$("forget").addEventListener("click", () => store([]));
window.addEventListener("hashchange", () => location.hash.length > 1 && follow(decodeURIComponent(location.hash.slice(1))));
loadModels();
showEarlier();
if (location.hash.length > 1) follow(decodeURIComponent(location.hash.slice(1)));
