// How a turn looks.

import { show } from "./markup.js";
import { ENDED } from "./turn.js";
import { say } from "./words.js";

/** The element of a turn and `draw`, to be called after every change of it. */
export function turnView(turn, { onStop, onSource, onAgain }) {
  const root = make("li", "turn");
  root.dataset.job = turn.jobId;
  const asked = make("article", "question");
  const answered = make("article", "answer");
  const names = [make("h2", "hidden"), make("h2", "hidden")];
  const question = make("p");
  question.textContent = turn.question;
  asked.append(names[0], question);
  const text = make("div", "text");
  const status = make("p", "status");
  const sources = make("details", "sources");
  const summary = make("summary");
  const cited = make("ol");
  sources.append(summary, cited);
  const stop = button("stop", () => onStop(turn));
  const again = button("again", () => onAgain(turn));
  const actions = make("div", "actions");
  actions.append(status, stop, again);
  answered.append(names[1], text, sources, actions);
  root.append(asked, answered);

  let drawn = null;
  const drawSources = () => {
    summary.textContent = say("sources", turn.sources.length);
    if (drawn === turn.sources) return;
    drawn = turn.sources;
    cited.replaceChildren(...turn.sources.map((source) => item(sourceButton(source, () => onSource(turn, source)))));
  };

  return {
    root,
    draw() {
      const ended = ENDED.has(turn.status);
      root.dataset.status = turn.status;
      answered.ariaBusy = String(!ended);
      names[0].textContent = say("you");
      names[1].textContent = say("answer");
      show(text, turn.text);
      status.textContent = turn.status === "done" ? "" : statusText(turn);
      sources.hidden = !turn.sources.length;
      drawSources();
      setButton(stop, say("stop"), !ended && turn.status !== "sending", turn.status === "stopping");
      setButton(again, say("again"), turn.status === "failed" || turn.status === "lost", false);
    },
  };
}

/** What is to be said of a turn as it stands. */
export function statusText(turn) {
  return turn.offline && !ENDED.has(turn.status) ? say("offline") : say(turn.status, turn.message);
}

function sourceButton(source, onClick) {
  const element = make("button");
  element.type = "button";
  const document = make("span", "document");
  document.textContent = source.document;
  const heading = make("span", "heading");
  heading.textContent = source.heading;
  element.append(document, " ", heading);
  element.addEventListener("click", onClick);
  return element;
}

function item(child) {
  const element = make("li");
  element.append(child);
  return element;
}

function setButton(element, text, visible, disabled) {
  element.textContent = text;
  element.hidden = !visible;
  element.ariaDisabled = String(disabled);
}

function button(className, onClick) {
  const element = make("button", className);
  element.type = "button";
  element.addEventListener("click", () => element.ariaDisabled !== "true" && onClick());
  return element;
}

function make(name, className = "") {
  const element = document.createElement(name);
  element.className = className;
  return element;
}
