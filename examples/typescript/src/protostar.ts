import { randomUUID } from "node:crypto";

import { Redis } from "ioredis";

import type { ChatRequest } from "./contract.js";
import { JobError } from "./errors.js";
import { Job, keys, ownerOf } from "./job.js";
import { ENQUEUE } from "./scripts.js";

const COMMAND_TIMEOUT_MS = 10_000;

/** Questions in, answers out; one for a process. */
export class Protostar {
  readonly #redis: Redis;
  readonly #maxQueue: number;

  /** `enqueue` refuses while the queue holds `maxQueue` jobs. */
  constructor(redisUrl: string, { maxQueue = 10_000 } = {}) {
    this.#redis = new Redis(redisUrl, { commandTimeout: COMMAND_TIMEOUT_MS });
    // Every call rejects by itself; without a listener ioredis writes to the console as well.
    this.#redis.on("error", () => undefined);
    this.#maxQueue = maxQueue;
  }

  /**
   * Puts a question into the queue. The same `jobId` again is the same turn: where a call fails and it is not
   * known whether it was heard, call again with the same id.
   */
  async enqueue(request: ChatRequest, jobId: string = randomUUID()): Promise<Job> {
    if (request.content.trim() === "") {
      throw new JobError("invalid_request", "content: is empty; write a question");
    }
    const payload = JSON.stringify({ t: null, f: "generate_chat", a: [], k: request });
    const [outcome, detail] = (await this.#redis.eval(
      ENQUEUE,
      3,
      keys.job(jobId),
      keys.result(jobId),
      keys.queue,
      jobId,
      payload.slice(0, -1),
      this.#maxQueue,
    )) as ["queued"] | ["exists", string] | ["full", number];
    if (outcome === "full") {
      throw new JobError("queue_full", `${detail} jobs wait; try again later or add workers`);
    }
    if (outcome === "exists" && ownerOf(detail) !== request.user_uuid.toLowerCase()) {
      throw new JobError("invalid_request", "job_id: is the id of another job; use an id of your own");
    }
    return this.job(jobId, request.user_uuid);
  }

  /** A job that was enqueued elsewhere; only its own user reads or cancels it. */
  job(jobId: string, userUuid: string): Job {
    return new Job(this.#redis, jobId, userUuid);
  }

  /** Lets go of Redis. Readers have connections of their own: end them with their signals. */
  close(): void {
    this.#redis.disconnect();
  }
}
