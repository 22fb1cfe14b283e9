import {
  Body,
  Controller,
  Delete,
  Headers,
  HttpCode,
  Inject,
  type MessageEvent,
  Param,
  Post,
  Sse,
  SseSignal,
  UseFilters,
} from "@nestjs/common";
import { from, map, type Observable } from "rxjs";

import { AnswersService, type Question } from "./answers.service.js";
import { JobErrorFilter } from "./job-error.filter.js";
import { User } from "./user.decorator.js";

@Controller("answers")
@UseFilters(JobErrorFilter)
export class AnswersController {
  constructor(@Inject(AnswersService) private readonly answers: AnswersService) {}

  @Post()
  @HttpCode(202)
  async ask(@User() userUuid: string, @Body() question: Question): Promise<{ job_id: string }> {
    const job = await this.answers.ask(userUuid, question);
    return { job_id: job.id };
  }

  /**
   * The events of an answer. A browser's EventSource sends `Last-Event-ID` by itself when it comes back; it must
   * `close()` at the event that ends the answer, or it comes back for ever. Messages have no `event:` name: one named
   * "error" could not be told from EventSource's own.
   */
  @Sse(":jobId/events")
  async events(
    @User() userUuid: string,
    @Param("jobId") jobId: string,
    @Headers("last-event-id") lastId: string | undefined,
    @SseSignal() signal: AbortSignal,
  ): Promise<Observable<MessageEvent>> {
    const job = this.answers.job(userUuid, jobId);
    await job.checkOwner(); // while there can still be a status code
    return from(job.events(lastId, signal)).pipe(map((event) => ({ id: event.id, data: event })));
  }

  @Delete(":jobId")
  async cancel(@User() userUuid: string, @Param("jobId") jobId: string): Promise<{ cancelled: boolean }> {
    return { cancelled: await this.answers.job(userUuid, jobId).cancel() };
  }
}
