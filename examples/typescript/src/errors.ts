import type { ErrorCode } from "./contract.js";

/** A job's final failure: `code` is for programs, the message for people. */
export class JobError extends Error {
  override readonly name = "JobError";

  constructor(
    readonly code: ErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** The job was cancelled. */
export class Cancelled extends Error {
  override readonly name = "Cancelled";
}

/** No trace of the job, or none that belongs to this user: enqueue the question again. */
export class JobVanished extends Error {
  override readonly name = "JobVanished";
}
