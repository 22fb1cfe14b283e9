import { Injectable, type OnApplicationShutdown } from "@nestjs/common";

import type { Job } from "../../src/job.js";
import { Protostar } from "../../src/protostar.js";

export interface Question {
  session_id: string;
  content: string;
  mode?: string;
  job_id?: string;
}

@Injectable()
export class AnswersService implements OnApplicationShutdown {
  readonly #protostar = new Protostar(process.env["REDIS_URL"] ?? "redis://localhost:6379/0");

  ask(userUuid: string, { job_id, ...question }: Question): Promise<Job> {
    return this.#protostar.enqueue({ user_uuid: userUuid, ...question }, job_id);
  }

  job(userUuid: string, jobId: string): Job {
    return this.#protostar.job(jobId, userUuid);
  }

  onApplicationShutdown(): void {
    this.#protostar.close();
  }
}
