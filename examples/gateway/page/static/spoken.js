// What a screen reader hears of an answer: whole sentences, a few at a time, so that tokens don't interrupt each other.

const PAUSE_MS = 1500;
const KEPT = 30;
const SENTENCES = /^[\s\S]*(?:[.!?。…](?=\s)|\n)/;

/** Says things through the live region `element`. */
export function speaker(element) {
  let said = 0;
  let timer = null;

  const say = (text) => {
    if (!text.trim()) return;
    const line = document.createElement("p");
    line.textContent = text;
    element.append(line);
    while (element.children.length > KEPT) element.firstElementChild.remove();
  };

  return {
    say,
    /** The answer so far; what is new of it is said once its sentences are complete. */
    hear(turn) {
      if (turn.text.length < said) said = 0;
      timer ??= setTimeout(() => {
        timer = null;
        const whole = SENTENCES.exec(turn.text.slice(said))?.[0] ?? "";
        said += whole.length;
        say(whole);
      }, PAUSE_MS);
    },
    /** The rest of an answer that has ended, and how. */
    end(turn, ending) {
      clearTimeout(timer);
      timer = null;
      say(turn.text.slice(said));
      said = 0;
      say(ending);
    },
  };
}
