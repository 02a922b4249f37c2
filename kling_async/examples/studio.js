"use strict";
const $ = (id) => document.getElementById(id);
const STEPS = ["waiting", "submitting", "running", "completed"];
let models = [];
let began = 0;
let source = null;

// ---- what is asked for ----

async function offer() {
  models = await (await fetch("models")).json();
  $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  lengths();
}

function lengths() {
  const { prices } = models.find((model) => model.name === $("model").value);
  $("duration").replaceChildren(...Object.keys(prices).map((seconds) => new Option(`${seconds} s`, seconds)));
  price();
}

function price() {
  const { prices } = models.find((model) => model.name === $("model").value);
  $("price").textContent = `for ${prices[$("duration").value]}`;
}

function show() {
  const [picture] = $("file").files;
  $("hint").hidden = Boolean(picture);
  $("preview").hidden = !picture;
  if (!picture) return;
  URL.revokeObjectURL($("preview").src);
  $("preview").src = URL.createObjectURL(picture);
}

async function make(event) {
  event.preventDefault();
  const [picture] = $("file").files;
  const asked = { prompt: $("prompt").value, model: $("model").value, duration: $("duration").value };
  $("go").disabled = true;
  tell("The picture is on its way …");
  try {
    const reply = await fetch(`videos?${new URLSearchParams(asked)}`, {
      method: "POST", body: picture, headers: { "Content-Type": picture.type },
    });
    const told = await reply.json();
    if (!reply.ok) return fail(told);
    // In the address: a reload, or tomorrow, finds the job again.
    history.replaceState(null, "", `#${told.key}`);
    follow(told.key);
  } catch {
    fail({ title: "The studio cannot be reached." });
  } finally {
    $("go").disabled = false;
  }
}

// ---- what becomes of it ----

function follow(key) {
  source?.close();
  began = Date.now();
  $("video").hidden = true;
  $("video").removeAttribute("src");
  $("empty").hidden = $("steps").hidden = $("keep").hidden = false;
  $("empty").textContent = "Your video is being made.";
  $("stage").classList.add("busy");
  tell("0 s");
  // It connects again by itself, and says what it has seen.
  source = new EventSource(`videos/${encodeURIComponent(key)}/events`);
  source.addEventListener("status", (event) => change(key, JSON.parse(event.data)));
  source.addEventListener("end", () => source.close());
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) fail({ title: "There is no such video here." });
  });
}

function change(key, status) {
  const step = status.state === "waiting" && status.status === "submitting" ? "submitting" : status.state;
  const place = STEPS.indexOf(step);
  for (const item of $("steps").children) {
    const its = STEPS.indexOf(item.dataset.step);
    item.className = its < place || step === "completed" ? "done" : its === place ? "now" : "";
  }
  if (status.state === "completed") {
    settle();
    $("empty").hidden = true;
    $("video").hidden = false;
    $("video").src = `videos/${encodeURIComponent(key)}/video`;
    $("video").play().catch(() => {});
    tell("Here it is.");
  } else if (status.state === "failed" || status.state === "uncertain") {
    fail(status.error ?? { title: "It could not be made." });
  }
}

function settle() {
  began = 0;
  $("stage").classList.remove("busy");
  $("keep").hidden = true;
}

function fail(problem) {
  settle();
  $("empty").hidden = false;
  $("empty").textContent = "There is no video.";
  $("steps").hidden = true;
  const fields = (problem.errors ?? []).map((one) => `${one.path}: ${one.message}`);
  const detail = typeof problem.detail === "string" ? problem.detail : "";
  const said = [problem.title ?? "It could not be made", ...(fields.length ? fields : [detail]), problem.advice];
  tell(said.filter(Boolean).join(" – "), true);
}

function tell(text, bad = false) {
  $("said").textContent = text;
  $("said").className = bad ? "bad" : "";
}

setInterval(() => {
  if (began) tell(`${Math.round((Date.now() - began) / 1000)} s`);
}, 1000);

$("form").addEventListener("submit", make);
$("file").addEventListener("change", show);
$("preview").addEventListener("error", () => ($("hint").hidden = !($("preview").hidden = true)));
$("model").addEventListener("change", lengths);
$("duration").addEventListener("change", price);
for (const name of ["dragenter", "dragleave", "drop"]) {
  $("drop").addEventListener(name, () => $("drop").classList.toggle("over", name === "dragenter"));
}
offer();
if (location.hash.length > 1) follow(decodeURIComponent(location.hash.slice(1)));
