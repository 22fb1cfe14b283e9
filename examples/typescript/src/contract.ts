/** What goes to the workers and what comes back, as it is on the wire; docs/protocol.md explains it. */

/** The arguments of `generate_chat`. */
export interface ChatRequest {
  user_uuid: string;
  session_id: string;
  content: string;
  mode?: string;
  context?: string;
  documents?: string[];
}

/** What one answer used. `cost` is null where the provider names none. */
export interface Usage {
  input_tokens: number;
  output_tokens: number;
  cost: number | null;
  estimated: boolean;
}

/** A passage that the prompt held; a higher `score` is better. */
export interface Source {
  chunk_id: number;
  document: string;
  heading: string;
  score: number;
}

/** The result of `generate_chat`. */
export interface ChatResult {
  message_id: number;
  session_id: string;
  content: string;
  finish_reason: string;
  model: string;
  usage: Usage;
  sources: Source[];
  attempt: number;
}

/** What every event has. `id` is the stream entry's: pass it as `lastId` to go on after it. */
export interface EventBase {
  id: string;
  v: 1;
  job_id: string;
  attempt: number;
  seq: number;
}

export interface StartEvent extends EventBase {
  type: "start";
  session_id: string;
  model: string;
}

export interface SourcesEvent extends EventBase {
  type: "sources";
  sources: Source[];
}

export interface DeltaEvent extends EventBase {
  type: "delta";
  text: string;
}

/** A new attempt: what was read before is void. */
export interface RestartEvent extends EventBase {
  type: "restart";
  reason: string;
}

export interface DoneEvent extends EventBase {
  type: "done";
  message_id: number;
  finish_reason: string;
  usage: Usage;
}

export interface ErrorEvent extends EventBase {
  type: "error";
  code: ErrorCode;
  message: string;
}

/** `message_id` is the message that holds what was kept; null where nothing was. */
export interface CancelledEvent extends EventBase {
  type: "cancelled";
  message_id: number | null;
}

/**
 * Events were lost: what was read before is void, and the answer follows as it is stored, in one `delta`. Readers say
 * this themselves; it is in no stream.
 */
export interface GapEvent extends EventBase {
  type: "gap";
}

export type Ending = DoneEvent | ErrorEvent | CancelledEvent;
export type Event = StartEvent | SourcesEvent | DeltaEvent | RestartEvent | GapEvent | Ending;

export type ErrorCode =
  | "invalid_request"
  | "unknown_mode"
  | "prompt_too_long"
  | "context_length"
  | "rate_limited"
  | "provider_unavailable"
  | "provider_error"
  | "content_filtered"
  | "stalled"
  | "job_timeout"
  | "too_many_attempts"
  | "queue_full"
  | "internal";

/** Whether the answer ends with this event. */
export function isEnding(event: Event): event is Ending {
  return event.type === "done" || event.type === "error" || event.type === "cancelled";
}
