import { type ArgumentsHost, Catch, HttpException } from "@nestjs/common";
import { BaseExceptionFilter } from "@nestjs/core";

import { JobError, JobVanished } from "../../src/errors.js";

/** Says over HTTP what a job's failure means to the one who asked. */
@Catch(JobError, JobVanished)
export class JobErrorFilter extends BaseExceptionFilter {
  override catch(error: JobError | JobVanished, host: ArgumentsHost): void {
    super.catch(new HttpException(error.message, statusOf(error)), host);
  }
}

function statusOf(error: JobError | JobVanished): number {
  if (error instanceof JobVanished) return 404;
  if (error.code === "invalid_request") return 400;
  return error.code === "queue_full" ? 503 : 502;
}
