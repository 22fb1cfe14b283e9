// A source within its document, in a dialog: the browser keeps the focus inside, Escape closes, and the focus goes back.

import { say } from "./words.js";

const MARGIN_PX = 32;
const find = (id) => document.getElementById(id);

export function showPassage(passage) {
  find("passage-title").textContent = passage.document;
  find("passage-heading").textContent = passage.heading;
  const mark = document.createElement("mark");
  const hint = document.createElement("span");
  hint.className = "hidden";
  hint.textContent = say("quoted");
  mark.append(hint, passage.text);
  find("passage-text").replaceChildren(passage.before, mark, passage.after);
  find("passage").showModal();
  find("passage-text").focus();
  find("passage-text").scrollTop = mark.offsetTop - MARGIN_PX;
}

find("passage-close").addEventListener("click", () => find("passage").close());
// A click beside the dialog is a click on its backdrop, which counts as the dialog itself.
find("passage").addEventListener("click", (event) => event.target === find("passage") && find("passage").close());
