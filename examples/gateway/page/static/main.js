// The page: one session, named in the address, its past turns, and those that are under way.

import * as api from "./api.js";
import * as memory from "./memory.js";
import { showPassage } from "./passage.js";
import { speaker } from "./spoken.js";
import { ENDED, fromMessages, newTurn, take } from "./turn.js";
import { statusText, turnView } from "./view.js";
import { label, say, switchLanguage } from "./words.js";

const SESSION = "session";
const NEAR_PX = 80;
let isFollowing = true; // whether the newest text is kept in view
const find = (id) => document.getElementById(id);
const spoken = speaker(find("spoken"));
const turns = new Map(); // job id -> { turn, view }
let sessionId = sessionOfAddress();
let followed = null; // turns of a session run one after the other, and a browser has few connections to spare
let toDraw = new Set();

// Asking

async function ask(question, jobId = newId()) {
  add(newTurn(jobId, question, "sending"));
  memory.rememberQuestion(sessionId, jobId, question);
  notice("");
  await send(turns.get(jobId).turn);
}

async function send(turn) {
  const session = sessionId;
  try {
    await api.ask(turn.jobId, session, turn.question);
    if (turn.status === "sending") turn.status = "queued";
  } catch (error) {
    memory.forgetQuestion(session, turn.jobId);
    Object.assign(turn, { status: "failed", message: error.message });
    notice(say("failed", error.message));
  }
  changed(turn);
  followNext();
}

function askAgain(turn) {
  turns.get(turn.jobId).view.root.remove();
  turns.delete(turn.jobId);
  ask(turn.question); // under a new id: the old one is a turn that has ended
  find("question").focus();
}

async function stop(turn) {
  turn.status = "stopping";
  changed(turn);
  try {
    // One that is followed hears of its end itself, once all that was said of it has been read.
    if ((await api.cancel(turn.jobId)) && followed !== turn) finish(turn, "cancelled");
  } catch (error) {
    notice(error.message);
  }
}

// Following

function followNext() {
  if (followed) return;
  const next = [...turns.values()].map(({ turn }) => turn).find((turn) => !ENDED.has(turn.status) && turn.status !== "sending");
  if (!next) return;
  followed = next;
  const session = sessionId;
  const isStill = () => followed === next && sessionId === session;
  api.follow(
    next.jobId,
    next.lastId,
    (event) => isStill() && onEvent(next, event),
    (linked) => {
      if (!isStill()) return;
      next.offline = !linked;
      changed(next);
    },
  );
}

function onEvent(turn, event) {
  if (event.type === "over") return settle(turn);
  take(turn, event);
  if (ENDED.has(turn.status)) return finish(turn, turn.status);
  if (event.type === "restart") spoken.say(say("restart"));
  spoken.hear(turn);
  changed(turn);
}

/** The events of an answer are gone: it stands in the session's history, or nowhere. */
async function settle(turn) {
  try {
    const stored = fromMessages(await api.messages(sessionId)).find(({ jobId }) => jobId === turn.jobId);
    Object.assign(turn, stored && ENDED.has(stored.status) ? stored : { status: "lost" });
    finish(turn, turn.status);
  } catch (error) {
    notice(say("historyFailed", error.message));
    turn.status = "lost";
    finish(turn, "lost");
  }
}

function finish(turn, status) {
  turn.status = status;
  memory.forgetQuestion(sessionId, turn.jobId);
  spoken.end(turn, statusText(turn));
  changed(turn);
  if (followed === turn) followed = null;
  followNext();
}

// Drawing, at most once a frame

function add(turn) {
  const view = turnView(turn, { onStop: stop, onSource: open, onAgain: askAgain });
  turns.set(turn.jobId, { turn, view });
  view.draw();
  find("turns").append(view.root);
  find("welcome").hidden = true;
  isFollowing = true;
  scrollToEnd();
}

function changed(turn) {
  if (!toDraw.size) requestAnimationFrame(draw);
  toDraw.add(turn.jobId);
}

function draw() {
  for (const jobId of toDraw) turns.get(jobId)?.view.draw();
  toDraw = new Set();
  if (isFollowing) scrollToEnd();
}

// The composer covers the end of the window, so the end of the page and not of the answer has to be in view.
function scrollToEnd() {
  const page = document.scrollingElement;
  page.scrollTop = page.scrollHeight;
}

/** Text that grows moves nothing; only a person who scrolls up leaves the end. */
function noteScroll() {
  const page = document.scrollingElement;
  isFollowing = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_PX;
}

async function open(turn, source) {
  try {
    showPassage(await api.passage(turn.jobId, source.chunk_id));
  } catch (error) {
    notice(say("passageFailed", error.message));
  }
}

function notice(text) {
  find("notice").textContent = text;
}

// Sessions

function sessionOfAddress() {
  const address = new URL(location.href);
  if (!address.searchParams.get(SESSION)) {
    address.searchParams.set(SESSION, newId());
    history.replaceState(null, "", address);
  }
  return address.searchParams.get(SESSION);
}

/** Show the session of the address: what is stored, and what this browser knows to be under way. */
async function openSession() {
  sessionId = sessionOfAddress();
  const session = sessionId;
  turns.clear();
  followed = null;
  find("turns").replaceChildren();
  notice("");
  let past = [];
  try {
    past = fromMessages(await api.messages(session));
  } catch (error) {
    notice(say("historyFailed", error.message));
  }
  if (session !== sessionId) return;
  for (const turn of past) pickUp(turn);
  memory.openQuestions(session).forEach(heard);
  find("welcome").hidden = turns.size > 0;
  followNext();
}

/** A turn as it is stored, or further on if this tab has read more of it. */
function pickUp(turn) {
  const read = memory.pickUpReading(turn.jobId);
  if (ENDED.has(turn.status)) memory.forgetQuestion(sessionId, turn.jobId);
  else if (read) Object.assign(turn, read);
  if (!turns.has(turn.jobId)) add(turn);
}

/** A question that this tab did not ask, or has asked before it was loaded again. */
function heard({ jobId, question }) {
  if (turns.has(jobId)) return;
  pickUp(newTurn(jobId, question, "queued"));
  followNext();
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // `randomUUID` is only there with HTTPS
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Controls

function relabel() {
  label(document);
  find("suggestions").replaceChildren(
    ...say("suggestions").map((question) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: question, onclick: () => ask(question) });
      item.append(button);
      return item;
    }),
  );
  for (const { view } of turns.values()) view.draw();
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).colorScheme.startsWith("light dark")
    ? matchMedia("(prefers-color-scheme: dark)").matches
    : root.dataset.theme === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("protostar:theme", root.dataset.theme);
}

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const box = find("question");
  const question = box.value.trim();
  if (!question) return box.focus();
  box.value = "";
  ask(question);
});
find("question").addEventListener("keydown", (event) => {
  // While an input method composes a syllable, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  find("composer").requestSubmit();
});
find("new").addEventListener("click", () => {
  history.pushState(null, "", location.pathname);
  openSession();
  find("question").focus();
});
find("language").addEventListener("click", () => {
  switchLanguage();
  relabel();
});
find("theme").addEventListener("click", switchTheme);
window.addEventListener("scroll", noteScroll, { passive: true });
window.addEventListener("resize", () => isFollowing && scrollToEnd());
window.addEventListener("popstate", openSession);
window.addEventListener("pagehide", () => followed && memory.keepReading(followed));
memory.watchQuestions(() => sessionId, heard);

relabel();
openSession();
if (matchMedia("(pointer: fine)").matches) find("question").focus();
