// Shows a ballot, sends a vote. All text of models goes in through textContent, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const SAID = { a: "A is better", b: "B is better", tie: "a tie", bad: "both are bad" };
const KEYS = { a: "a", b: "b", t: "tie", x: "bad" };
let state = null;
let busy = false;

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Vote-Token": state.token },
    body: JSON.stringify(body),
  };
  const reply = await fetch(path, options);
  const content = await reply.json().catch(() => ({}));
  return { status: reply.status, content };
}

function element(kind, text) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(text, wrong = false) {
  byId("news").textContent = text;
  byId("news").classList.toggle("wrong", wrong);
}

// Every character is shown; what stands between fences is in a font in which code lines up.
const FENCED = /^(```[^\n]*\n[\s\S]*?(?:^```[ \t]*$|$(?![\s\S])))/m;

function fill(id, text) {
  const place = byId(id);
  const empty = text.trim() === "";
  place.classList.toggle("none", empty);
  const parts = empty ? ["(an empty answer)"] : text.split(FENCED);
  place.replaceChildren(...parts.map((part, number) => element(number % 2 ? "code" : "span", part)));
}

// To the result, or back to the ballot.
function turn(over) {
  byId("vote").hidden = over;
  byId("result").hidden = !over;
  byId("ask-result").hidden = over;
  document.body.classList.toggle("over", over);
}

function show(next) {
  const before = state && state.ballot ? state.ballot.id : null;
  state = next;
  const ballot = state.ballot;
  byId("bar").max = Math.max(state.total, 1);
  byId("bar").value = state.done;
  byId("count").textContent = `${state.done} of ${state.total}` + (state.skipped ? `, ${state.skipped} skipped` : "");
  byId("undo").disabled = state.undo === null;
  for (const button of document.querySelectorAll("[data-choice], #skip")) button.disabled = ballot === null;
  if (ballot === null) return;
  turn(false);
  const second = ballot.turn === 2;
  byId("about").textContent = `${ballot.category}, ` + (second ? "second turn: both go on from their own first answer" : "first turn");
  byId("earlier").hidden = !second;
  if (ballot.id !== before) byId("earlier").open = false;
  byId("question-title").textContent = second ? "Second question" : "Question";
  byId("question").textContent = ballot.questions[ballot.turn - 1];
  ballot.answers.forEach((answer, place) => {
    const side = "ab"[place];
    fill(`answer-${side}`, answer.turns[ballot.turn - 1]);
    byId(`cut-${side}`).hidden = !answer.cut;
    if (second) fill(`first-${side}`, answer.turns[0]);
  });
  if (second) byId("question-1").textContent = ballot.questions[0];
  if (ballot.id !== before) {
    window.scrollTo(0, 0);
    byId("question-title").focus({ preventScroll: true });
  }
}

async function change(path, id, done) {
  if (busy) return;
  busy = true;
  try {
    const { status, content } = await ask(path, { id, ...(path === "/api/vote" ? { choice: done.choice } : {}) });
    if (status === 200) {
      show(content);
      say(done.text);
    } else if (status === 409) {
      show(content);
      say("This was already done in another window; here is what comes next.", true);
    } else if (status === 403) {
      show((await ask("/api/state")).content);
      say("openbezoar vote was started anew; nothing was saved. Please vote again.", true);
    } else {
      say(`Not saved: ${content.detail || status}`, true);
    }
  } catch {
    say("No answer, nothing was saved: is openbezoar vote still running?", true);
  } finally {
    busy = false;
  }
  if (state.ballot === null && byId("result").hidden && state.total) await result();
}

const vote = (choice) => state.ballot && change("/api/vote", state.ballot.id, { choice, text: `Saved: ${SAID[choice]}.` });
const skip = () => state.ballot && change("/api/skip", state.ballot.id, { text: "Skipped; it comes again after the others." });
const undo = () => state.undo && change("/api/undo", state.undo, { text: "Taken back; here it is again." });

async function result() {
  byId("sure").close();
  try {
    const { status, content } = await ask("/api/result", {});
    if (status !== 200) throw new Error();
    fillResult(content);
  } catch {
    say("No answer: is openbezoar vote still running? Reload the page.", true);
  }
}

function fillResult(found) {
  const left = state.total - state.done;
  byId("result-about").textContent = `${found.votes} votes given` + (left ? `, ${left} pairs left.` : ": that was all. You may close this page and stop the command.");
  const tables = byId("result-tables");
  tables.replaceChildren();
  for (const table of found.votes ? found.tables : []) {
    const grid = element("table");
    const head = element("tr");
    for (const cell of table.headers) head.append(element("th", cell));
    grid.append(head);
    for (const row of table.rows) {
      const line = element("tr");
      row.forEach((cell, place) => {
        const made = element("td", cell);
        made.dataset.label = table.headers[place];
        line.append(made);
      });
      grid.append(line);
    }
    const wide = element("div");
    wide.className = "wide";
    wide.append(grid);
    const note = element("p", table.note);
    note.className = "note";
    tables.append(wide, note);
  }
  byId("result-notes").replaceChildren(...found.notes.map((note) => element("li", note)));
  byId("go-on").hidden = state.ballot === null;
  turn(true);
  window.scrollTo(0, 0);
  byId("result-title").focus({ preventScroll: true });
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || byId("sure").open || state === null) return;
  const pressed = event.key.toLowerCase();
  const voting = !byId("vote").hidden;
  if (pressed === "u") undo();
  else if (!voting) return;
  else if (pressed in KEYS) vote(KEYS[pressed]);
  else if (pressed === "s") skip();
  else if (pressed === "e" && !byId("earlier").hidden) byId("earlier").open = !byId("earlier").open;
}

async function begin() {
  for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => vote(button.dataset.choice));
  byId("skip").addEventListener("click", skip);
  byId("undo").addEventListener("click", undo);
  byId("ask-result").addEventListener("click", () => (state && state.ballot === null ? result() : byId("sure").showModal()));
  byId("show-result").addEventListener("click", result);
  byId("not-yet").addEventListener("click", () => byId("sure").close());
  byId("go-on").addEventListener("click", () => turn(false));
  document.addEventListener("keydown", key);
  try {
    show((await ask("/api/state")).content);
  } catch {
    return say("No answer: is openbezoar vote still running? Reload the page.", true);
  }
  if (state.ballot === null && state.total) await result();
  else if (!state.total) say("There is nothing to vote on: the two never answer differently.");
}

begin();
