// A question and its answer: what is known of them, and how events change it. Nothing here is drawn.

export const ENDED = new Set(["done", "cancelled", "failed", "lost"]);

/** A turn of which nothing but the question is known. */
export function newTurn(jobId, question, status) {
  return { jobId, question, status, text: "", sources: [], lastId: null, message: "" };
}

/** Take an event in. What a `restart` or `gap` voids is forgotten. */
export function take(turn, event) {
  if (event.id) turn.lastId = event.id;
  switch (event.type) {
    case "start":
      if (turn.status !== "restart") turn.status = stillStopping(turn, "running"); // what was lost is told until text comes
      break;
    case "sources":
      turn.sources = event.sources;
      break;
    case "delta":
      turn.status = stillStopping(turn, "running");
      turn.text += event.text;
      break;
    case "restart":
    case "gap":
      turn.status = stillStopping(turn, "restart");
      turn.text = "";
      turn.sources = [];
      break;
    case "done":
    case "cancelled":
      turn.status = event.type;
      break;
    case "error":
      turn.status = "failed";
      turn.message = event.message;
      break;
    case "over":
      turn.status = "lost";
  }
}

const stillStopping = (turn, status) => (turn.status === "stopping" ? "stopping" : status);

/** The turns of a session's stored messages, in order; one whose answer is not stored yet is `queued`. */
export function fromMessages(messages) {
  const turns = new Map();
  for (const message of messages) {
    if (message.role === "user") {
      turns.set(message.job_id, newTurn(message.job_id, message.content, "queued"));
    } else if (turns.has(message.job_id)) {
      const turn = turns.get(message.job_id);
      turn.status = message.status === "completed" ? "done" : message.status;
      turn.text = message.content;
      turn.sources = message.sources;
    }
  }
  return [...turns.values()];
}
