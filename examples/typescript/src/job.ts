import { setTimeout as sleep } from "node:timers/promises";

import type { Redis } from "ioredis";

import { isEnding, type ChatResult, type ErrorCode, type Event } from "./contract.js";
import { Cancelled, JobError, JobVanished } from "./errors.js";
import { CANCEL } from "./scripts.js";

export const keys = {
  queue: "arq:queue",
  abort: "arq:abort",
  job: (id: string) => `arq:job:${id}`,
  result: (id: string) => `arq:result:${id}`,
  lease: (id: string) => `arq:in-progress:${id}`,
  events: (id: string) => `chat:events:${id}`,
};

const BLOCK_MS = 2_000;
const BATCH = 500;
const FIRST_POLL_MS = 10;
const LONGEST_POLL_MS = 250;
const SECOND_LOOK_MS = 1_000;
/** Stands for the seq of an ending that is no longer in the stream. */
const AS_STORED_SEQ = "9223372036854775807";

type Entry = [id: string, fields: string[]];

/** A job at one moment: its stored result, whether it waits or runs, the last entry of its events. */
interface State {
  result: string | null;
  isAlive: boolean;
  /** The payload is there, and nothing else: no worker will ever find it. */
  isStray: boolean;
  newest: Entry | undefined;
}

/** One turn of a user: read it, wait for it, cancel it. */
export class Job {
  readonly #redis: Redis;

  constructor(
    redis: Redis,
    readonly id: string,
    readonly userUuid: string,
  ) {
    this.#redis = redis;
  }

  /** Throws `JobVanished` where the job is unknown or another user's. */
  async checkOwner(): Promise<void> {
    const records = await this.#redis.mget(keys.job(this.id), keys.result(this.id));
    if (!records.some((record) => record !== null && ownerOf(record) === this.userUuid.toLowerCase())) {
      throw new JobVanished(`job ${this.id} is not known for this user`);
    }
  }

  /**
   * The events after `lastId`, from the first one without it, live or late, each once. Ends after `done`, `error` or
   * `cancelled`; throws where none of them can come any more. Where events were lost, `gap` and the stored answer
   * take their place. `signal` lets a reader go that wants no more.
   */
  events(lastId = "0-0", signal?: AbortSignal): AsyncGenerator<Event, void> {
    if (!/^\d{1,19}-\d{1,19}$/.test(lastId)) {
      throw new JobError("invalid_request", "last_id: is no event's id; pass the id of the last event seen");
    }
    return this.#follow(lastId, signal);
  }

  /** The whole answer, once it is complete. */
  async text(): Promise<string> {
    let parts: string[] = [];
    for await (const event of this.events()) {
      if (event.type === "restart" || event.type === "gap") parts = [];
      else if (event.type === "delta") parts.push(event.text);
      else if (event.type === "error") throw new JobError(event.code, event.message);
      else if (event.type === "cancelled") throw new Cancelled(`job ${this.id} was cancelled`);
    }
    return parts.join("");
  }

  /** The job's result, once there is one; throws `JobError` or `Cancelled` where the job ended otherwise. */
  async result(timeoutMs = Infinity): Promise<ChatResult> {
    await this.checkOwner();
    return this.#valueOf(await this.#ended(timeoutMs));
  }

  /** Ends the job and waits for its end: true if it was cancelled, false if it had ended otherwise before. */
  async cancel(timeoutMs = 15_000): Promise<boolean> {
    await this.checkOwner();
    await this.#redis.eval(CANCEL, 4, keys.job(this.id), keys.result(this.id), keys.abort, keys.queue, this.id);
    try {
      await this.result(timeoutMs);
    } catch (error) {
      if (error instanceof Cancelled) return true;
      if (!(error instanceof JobError)) throw error;
    }
    return false;
  }

  async *#follow(lastId: string, signal?: AbortSignal): AsyncGenerator<Event, void> {
    await this.checkOwner();
    // XREAD BLOCK holds up whatever else uses its connection.
    const connection = this.#redis.duplicate();
    connection.on("error", () => undefined);
    const leave = () => connection.disconnect();
    signal?.addEventListener("abort", leave);
    try {
      for await (const event of this.#entries(connection, lastId)) {
        if (!isNext(event.id, lastId)) break;
        yield event;
        if (isEnding(event) || signal?.aborted) return;
        lastId = event.id;
      }
      if (!(await this.#hasSeenEnding(lastId))) yield* this.#asStored(lastId, signal);
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      signal?.removeEventListener("abort", leave);
      leave();
    }
  }

  /** Every entry after `lastId`, as it comes, while more can come. */
  async *#entries(connection: Redis, lastId: string): AsyncGenerator<Event, void> {
    const stream = keys.events(this.id);
    // What is there comes first: a finished answer keeps nobody waiting.
    for (let blockMs = 1; ; blockMs = BLOCK_MS) {
      const reply = await connection.xread("COUNT", BATCH, "BLOCK", blockMs, "STREAMS", stream, lastId);
      const entries = reply?.[0]?.[1] ?? [];
      for (const entry of entries) {
        yield eventOf(entry);
        lastId = entry[0];
      }
      if (entries.length > 0) continue;
      const { result, isAlive, newest } = await this.#state();
      const isMore = newest !== undefined && isAfter(newest[0], lastId);
      if (!isMore && (result !== null || !isAlive)) return;
    }
  }

  async #hasSeenEnding(lastId: string): Promise<boolean> {
    const { newest } = await this.#state();
    if (newest === undefined) return lastId.endsWith(`-${AS_STORED_SEQ}`);
    return !isAfter(newest[0], lastId) && !isAfter(lastId, newest[0]) && isEnding(eventOf(newest));
  }

  /** What takes the place of events that were lost, once the job has ended. */
  async *#asStored(lastId: string, signal?: AbortSignal): AsyncGenerator<Event, void> {
    const state = await this.#ended(Infinity, signal);
    const ending = state.newest && eventOf(state.newest);
    if (ending?.type === "error" || ending?.type === "cancelled") return yield ending;

    const { content, message_id, finish_reason, usage, attempt } = this.#valueOf(state);
    const id = ending?.type === "done" ? ending.id : `${attempt}-${AS_STORED_SEQ}`;
    // Until `done`, the id leads a reader that comes back here again.
    const base = { v: 1, job_id: this.id, id: lastId, attempt, seq: placeOf(lastId)[1] } as const;
    yield { ...base, type: "gap" };
    yield { ...base, type: "delta", text: content };
    yield { ...base, id, seq: placeOf(id)[1], type: "done", message_id, finish_reason, usage };
  }

  /** The state of the job once it has a result. */
  async #ended(timeoutMs: number, signal?: AbortSignal): Promise<State> {
    const deadline = Date.now() + timeoutMs;
    for (let delayMs = FIRST_POLL_MS; ; delayMs = Math.min(delayMs * 1.5, LONGEST_POLL_MS)) {
      const state = await this.#state();
      if (state.result !== null) return state;
      if (!state.isAlive) throw new JobVanished(`job ${this.id} is gone without a result`);
      if (Date.now() + delayMs > deadline) throw new Error(`no result of ${this.id} within ${timeoutMs} ms`);
      await sleep(delayMs, undefined, { signal });
    }
  }

  /** A stray job may be about to be queued by a producer that takes two steps: a second look decides. */
  async #state(): Promise<State> {
    const state = await this.#look();
    if (!state.isStray) return state;
    await sleep(SECOND_LOOK_MS);
    return this.#look();
  }

  /** In one transaction: a job that ends is never seen without both trace and result. */
  async #look(): Promise<State> {
    const replies = await this.#redis
      .multi()
      .get(keys.result(this.id))
      .exists(keys.job(this.id))
      .exists(keys.lease(this.id))
      .zscore(keys.queue, this.id)
      .xrevrange(keys.events(this.id), "+", "-", "COUNT", 1)
      .exec();
    const values = (replies ?? []).map(([error, value]) => {
      if (error !== null) throw error;
      return value;
    });
    const [result, payloads, leases, score, newest] = values as [string | null, number, number, string | null, Entry[]];
    const isAlive = leases > 0 || score !== null;
    return { result, isAlive, isStray: payloads > 0 && !isAlive && result === null, newest: newest[0] };
  }

  #valueOf(state: State): ChatResult {
    const record = JSON.parse(state.result ?? "{}") as
      | { s: true; r: ChatResult }
      | { s: false; r: { error: { code: ErrorCode | "cancelled"; message: string } } };
    if (record.s) return record.r;
    const { code, message } = record.r.error;
    if (code === "cancelled") throw new Cancelled(`job ${this.id} was cancelled`);
    throw new JobError(code, message);
  }
}

/** The user whom a job's payload or result names. */
export function ownerOf(record: string): string | undefined {
  return (JSON.parse(record) as { k?: { user_uuid?: string } }).k?.user_uuid?.toLowerCase();
}

function eventOf([id, fields]: Entry): Event {
  return { ...(JSON.parse(fields[1] ?? "{}") as Event), id };
}

function placeOf(id: string): [attempt: number, seq: number] {
  const [attempt = 0, seq = 0] = id.split("-").map(Number);
  return [attempt, seq];
}

function isAfter(id: string, other: string): boolean {
  const [[attempt, seq], [otherAttempt, otherSeq]] = [placeOf(id), placeOf(other)];
  return attempt > otherAttempt || (attempt === otherAttempt && seq > otherSeq);
}

/** Whether nothing that counts is missing between the two: an attempt voids those before it. */
function isNext(id: string, earlier: string): boolean {
  const [[attempt, seq], [earlierAttempt, earlierSeq]] = [placeOf(id), placeOf(earlier)];
  return seq === (attempt === earlierAttempt ? earlierSeq + 1 : 1);
}
