// What the gateway offers.

/** An error that the gateway has told. */
export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
  }
}

async function call(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}) };
  const response = await fetch(path, body === undefined ? {} : post);
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, reply.error ?? { message: response.statusText });
  return reply;
}

/** Enqueue a question. The id is ours, so that asking again after a lost reply is the same turn. */
export const ask = (jobId, sessionId, content) =>
  call("/api/answers", { job_id: jobId, session_id: sessionId, content });

/** Stop an answer; true, false, or null where the request still stands. */
export const cancel = async (jobId) => (await call(`${answer(jobId)}/cancel`, {})).cancelled;

/** A source's text within its document. */
export const passage = (jobId, chunkId) => call(`${answer(jobId)}/passages/${chunkId}`);

/** The newest messages of a session, oldest first. */
export const messages = (sessionId) => call(`/api/messages?session_id=${encodeURIComponent(sessionId)}`);

/**
 * Follow an answer from after `lastId`. The browser comes back by itself when the connection breaks, with the last id it
 * saw. `onEvent` gets every event once, and one of type `over` when nothing more will come; `onLink`, whether there is a
 * connection.
 */
export function follow(jobId, lastId, onEvent, onLink) {
  const source = new EventSource(`${answer(jobId)}/events${lastId ? `?after=${lastId}` : ""}`);
  // A proxy that goes silent without closing raises no error: the missing signs of life show it.
  let watch;
  const isAlive = () => {
    clearTimeout(watch);
    watch = setTimeout(async () => {
      source.close();
      onLink(false);
      await dropSilentConnections();
      follow(jobId, lastId, onEvent, onLink);
    }, SILENCE_MS);
  };
  isAlive();
  source.onopen = () => {
    isAlive();
    onLink(true);
  };
  source.onmessage = ({ data, lastEventId }) => {
    isAlive();
    const event = JSON.parse(data);
    lastId = lastEventId || lastId;
    if (event.type === "alive") return;
    if (ENDINGS.has(event.type)) {
      clearTimeout(watch);
      source.close();
    }
    onEvent(event);
  };
  source.onerror = async () => {
    onLink(false);
    if (source.readyState !== EventSource.CLOSED) return;
    clearTimeout(watch);
    // It was refused and does not come back by itself; why, it doesn't tell.
    if (await isGone(jobId)) onEvent({ type: "over" });
    else setTimeout(() => follow(jobId, lastId, onEvent, onLink), RETRY_MS);
  };
}

/** The browser keeps connections for later; behind a silent proxy each of them would cost another wait. */
const dropSilentConnections = () =>
  Promise.allSettled(
    Array.from({ length: MOST_CONNECTIONS }, () => fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) })),
  );

const ENDINGS = new Set(["done", "error", "cancelled", "over"]);
const RETRY_MS = 2000;
const PROBE_MS = 2000;
const MOST_CONNECTIONS = 6; // of a browser to one host
const SILENCE_MS = 7_000; // the gateway sends a sign of life every 3 s

const isGone = (jobId) =>
  call(answer(jobId)).then(
    () => false,
    (error) => error instanceof Refused && error.status < 500,
  );

const answer = (jobId) => `/api/answers/${encodeURIComponent(jobId)}`;
