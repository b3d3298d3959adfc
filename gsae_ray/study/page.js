// The raters' page: shows one item, sends each answer at once, keeps it until it is known to be saved.
"use strict";

const at = (id) => document.getElementById(id);
const windowId = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
let shown = null; // what the server said last: {done, total, next, item}
let waiting = false; // whether an answer is under way
let early = false; // whether the text field takes what is typed for the next item, which is not shown yet
let refused = null; // {answer, rating} of this window that another window's answer stands in the way of
let unsure = []; // answers to this item that had no reply: one may have been saved all the same
const drafts = new Map(); // place -> explanation that was typed there and is not known to be saved

// Time that the page is seen, by a clock that only goes forward.
const clock = {
  seen: 0,
  since: null,
  start() { if (this.since === null && document.visibilityState === "visible") this.since = performance.now(); },
  stop() { if (this.since !== null) { this.seen += performance.now() - this.since; this.since = null; } },
  read() { this.stop(); this.start(); return this.seen / 1000; },
  reset() { this.seen = 0; this.since = null; this.start(); },
};
document.addEventListener("visibilitychange", () => (document.visibilityState === "visible" ? clock.start() : clock.stop()));

function say(text, retry) {
  at("alert").hidden = !text;
  at("alert").textContent = text;
  at("retry").hidden = !retry;
  at("again").onclick = retry || null;
}

// Asks the server. `not` says what is not done where that fails, `again` does it.
async function ask(path, options, not, again) {
  let reply, told;
  try {
    reply = await fetch(path, { cache: "no-store", ...options });
    told = await reply.json().catch(() => ({}));
  } catch {
    say(`The server does not answer. ${not} Try again in a moment, or tell who runs the study.`, again);
    return null;
  }
  if (reply.ok || reply.status === 409) {
    say("");
    return { status: reply.status, told };
  }
  say(reply.status === 403 ? "This link is not known any more: ask who runs the study for yours." : `${not} What the server says: ${told.error || reply.status}`, again);
  return null;
}

async function load(place, before = "") {
  if (waiting) return;
  waiting = true;
  const not = `${before}The item cannot be shown yet.`;
  const found = await ask(`item${place ? `?place=${place}` : ""}`, {}, not, () => load(place, before));
  waiting = false;
  if (found) show(found.told);
  else if (early) show(shown);
}

function show(told) {
  const before = shown && shown.item && shown.item.place;
  shown = told;
  refused = null;
  unsure = [];
  const item = told.item;
  const typed = early && item && item.place !== before ? at("explanation").value : "";
  busy(false);
  at("progress").textContent = item ? `${item.place} of ${told.total} (${told.done} rated)` : `${told.done} of ${told.total} rated`;
  at("bar").max = told.total;
  at("bar").value = told.done;
  at("conflict").hidden = true;
  at("finished").hidden = Boolean(item);
  at("work").hidden = !item;
  if (!item) {
    if (drafts.size) say(`What you typed at item ${[...drafts.keys()].join(", ")} was not sent: go back there to send it, or leave it.`);
    document.querySelector("#finished .back").focus();
    return;
  }
  if (item.place !== before) {
    clock.reset();
    at("texts").replaceChildren(...item.texts.map(drawn));
    window.scrollTo(0, 0);
  }
  if (drafts.get(item.place) === item.explanation) drafts.delete(item.place);
  if (typed && (item.version === 0 || drafts.has(item.place))) drafts.set(item.place, (drafts.get(item.place) || "") + typed);
  const draft = drafts.get(item.place);
  at("explanation").value = draft === undefined ? item.explanation : draft;
  document.querySelector("#work .back").hidden = item.place === 1;
  at("forward").hidden = told.next === item.place || item.label === null;
  step(item.version === 0 || draft !== undefined ? "explain" : "rate");
}

function step(name) {
  const item = shown.item;
  at("explain").hidden = name !== "explain";
  at("rate").hidden = name !== "rate";
  at("told").textContent = item.explanation.trim() || "(none)";
  for (const button of document.querySelectorAll("[data-label]")) button.setAttribute("aria-pressed", String(button.dataset.label === item.label));
  // Not an answer's button: a second press of Enter would be that answer.
  at(name === "explain" ? "explanation" : "rate").focus({ preventScroll: true });
}

function busy(now) {
  early = now;
  at("work").setAttribute("aria-busy", String(now));
}

// Who types on at once loses no half of a word: after a rating the text field is there before the next item is.
function typeAhead() {
  if (early) return;
  busy(true);
  at("explanation").value = "";
  step("explain");
}

// Back to the rating, since the next item does not come.
function stay() {
  if (!early) return;
  busy(false);
  at("explanation").value = shown.item.explanation;
  step("rate");
}

function drawn(text) {
  const line = document.createElement("li");
  line.append(shaded(text.tokens, text.shades, text.shades.indexOf(Math.max(...text.shades))));
  return line;
}

// Sends an answer; after a rating goes on to the next item, after an explanation to the rating.
async function send(answer, rating) {
  if (waiting) return;
  waiting = true;
  if (rating) typeAhead();
  const seconds = clock.read();
  const { place, version } = shown.item;
  const body = JSON.stringify({ place, version, window: windowId, seconds, ...answer });
  // What is typed while this one is under way is sent when it is tried again.
  const again = rating ? () => send(answer, rating) : explained;
  const found = await ask("answer", { method: "POST", headers: { "Content-Type": "application/json" }, body }, "This was not saved yet. It is still on this page.", again);
  waiting = false;
  if (!found) {
    unsure.push({ ...answer, seconds });
    stay();
    return;
  }
  if (found.status === 409) {
    const { item } = found.told;
    const own = unsure.find((sent) => sent.explanation === item.explanation && sent.label === item.label);
    if (own && item.version === version + 1) {
      // What stands in the way is this window's own answer, whose reply was lost.
      shown = found.told;
      unsure = [];
      clock.seen = Math.max(0, clock.seen - 1000 * own.seconds);
      send(answer, rating);
    } else conflict(answer, rating, found.told);
    return;
  }
  clock.seen = Math.max(0, clock.seen - 1000 * seconds);
  if (rating) {
    shown = found.told;
    unsure = [];
    load(undefined, "Your rating is saved. ");
  } else show(found.told);
}

const inWords = (label, explanation) => [label && label[0].toUpperCase() + label.slice(1), explanation.trim() || "no explanation"].filter(Boolean).join(": ");

function conflict(answer, rating, told) {
  shown = told;
  stay();
  refused = { answer, rating };
  at("there").textContent = inWords(told.item.label, told.item.explanation);
  at("here").textContent = inWords(answer.label, answer.explanation);
  at("work").hidden = true;
  at("conflict").hidden = false;
  at("keep").focus();
}

const explained = () => send({ explanation: at("explanation").value, label: shown.item.label }, false);
const rated = (label) => send({ explanation: shown.item.explanation, label }, true);
const back = () => load(shown.item ? Math.max(1, shown.item.place - 1) : shown.total);

at("go").onclick = explained;
at("change").onclick = () => step("explain");
at("forward").onclick = () => load();
at("keep").onclick = () => { drafts.delete(shown.item.place); load(shown.item.label === null ? shown.item.place : undefined); };
at("explanation").oninput = ({ target }) => early || (target.value === shown.item.explanation ? drafts.delete(shown.item.place) : drafts.set(shown.item.place, target.value));
at("replace").onclick = () => { const { answer, rating } = refused; refused = null; at("conflict").hidden = true; at("work").hidden = false; send({ ...answer, label: answer.label || shown.item.label }, rating); };
for (const button of document.querySelectorAll(".back")) button.onclick = back;
for (const button of document.querySelectorAll("[data-label]")) button.onclick = () => rated(button.dataset.label);

document.addEventListener("keydown", (event) => {
  // A key that is held down, or Enter, is nothing that is typed for the next item.
  if (early && !event.isComposing && (event.key === "Enter" || (event.repeat && event.key.length === 1))) event.preventDefault();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat || !shown || waiting || refused) return;
  if (event.target === at("explanation")) {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); explained(); }
    if (event.key === "Escape") at("explanation").blur();
    return;
  }
  const labels = { y: "yes", m: "maybe", n: "no" };
  const rating = shown.item && !at("rate").hidden;
  if (event.key === "b" && (!shown.item || shown.item.place > 1)) back();
  else if (event.key === "f" && shown.item && !at("forward").hidden) load();
  else if (rating && event.key === "e") { event.preventDefault(); step("explain"); }
  else if (rating && event.key in labels) { event.preventDefault(); rated(labels[event.key]); }
});

load();
