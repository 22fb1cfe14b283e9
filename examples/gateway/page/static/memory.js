// What the browser remembers: for all tabs, the questions of a session that may still be under way, so that a tab that is
// opened or reloaded follows them and the others hear of new ones; for one tab, how far it has read.

const openKey = (sessionId) => `protostar:open:${sessionId}`;
const readKey = (jobId) => `protostar:read:${jobId}`;

const load = (storage, key, otherwise) => {
  try {
    return JSON.parse(storage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
};

/** Questions that were asked and have not ended as far as any tab knows: `[{jobId, question}]`. */
export const openQuestions = (sessionId) => load(localStorage, openKey(sessionId), []);

export function rememberQuestion(sessionId, jobId, question) {
  localStorage.setItem(openKey(sessionId), JSON.stringify([...openQuestions(sessionId), { jobId, question }]));
}

export function forgetQuestion(sessionId, jobId) {
  const left = openQuestions(sessionId).filter((open) => open.jobId !== jobId);
  if (left.length) localStorage.setItem(openKey(sessionId), JSON.stringify(left));
  else localStorage.removeItem(openKey(sessionId));
}

/** Call `onQuestion` when another tab has asked something in a session. */
export function watchQuestions(sessionId, onQuestion) {
  window.addEventListener("storage", (event) => {
    if (event.key === openKey(sessionId())) openQuestions(sessionId()).forEach(onQuestion);
  });
}

/** Keep what this tab has read of an answer over a reload. */
export function keepReading(turn) {
  sessionStorage.setItem(readKey(turn.jobId), JSON.stringify(turn));
}

/** What this tab had read of an answer before it was loaded again; null where nothing. */
export function pickUpReading(jobId) {
  const turn = load(sessionStorage, readKey(jobId), null);
  sessionStorage.removeItem(readKey(jobId));
  return turn;
}
