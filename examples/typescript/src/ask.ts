import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";

import type { Event } from "./contract.js";
import { JobError } from "./errors.js";
import type { Job } from "./job.js";
import { Protostar } from "./protostar.js";

const USAGE = `ask [--user UUID] [--session ID] [--mode M] [--job ID] [--json] QUESTION
ask --user UUID --job ID [--after EVENT_ID] [--json]   read a job that was enqueued before
ask --user UUID --job ID --text                        print the answer once it is complete
ask --user UUID --job ID --result                      print the job's result
ask --user UUID --job ID --cancel                      end a job
REDIS_URL names the Redis; --json prints events, one a line.`;

async function main(): Promise<number> {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      user: { type: "string", default: randomUUID() },
      session: { type: "string", default: "main" },
      mode: { type: "string", default: "general" },
      job: { type: "string", default: randomUUID() },
      after: { type: "string" },
      json: { type: "boolean", default: false },
      text: { type: "boolean", default: false },
      result: { type: "boolean", default: false },
      cancel: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (options.help) {
    console.log(USAGE);
    return 0;
  }
  const protostar = new Protostar(process.env["REDIS_URL"] ?? "redis://localhost:6379/0");
  try {
    const content = positionals.join(" ");
    const job = protostar.job(options.job, options.user);
    if (content !== "") {
      await protostar.enqueue(
        { user_uuid: options.user, session_id: options.session, mode: options.mode, content },
        options.job,
      );
      console.error(`--user ${options.user} --job ${job.id}`);
    }
    if (options.cancel) console.log((await job.cancel()) ? "cancelled" : "had ended");
    else if (options.text) console.log(await job.text());
    else if (options.result) console.log(JSON.stringify(await job.result()));
    else return await follow(job, options.after, options.json ? printJson : printText);
    return 0;
  } finally {
    protostar.close();
  }
}

async function follow(job: Job, after: string | undefined, print: (event: Event) => void): Promise<number> {
  for await (const event of job.events(after)) {
    print(event);
    if (event.type === "error" || event.type === "cancelled") return 1;
  }
  return 0;
}

function printJson(event: Event): void {
  console.log(JSON.stringify(event));
}

function printText(event: Event): void {
  if (event.type === "delta") process.stdout.write(event.text);
  else if (event.type === "restart") console.log(`\n[${event.reason}: the answer begins again]`);
  else if (event.type === "gap") console.log("\n[events were lost: the answer as it is stored]");
  else if (event.type === "done") console.log();
  else if (event.type === "cancelled") console.log("\n[cancelled]");
  else if (event.type === "error") console.error(`${event.code}: ${event.message}`);
}

try {
  process.exitCode = await main();
} catch (error) {
  if (error instanceof JobError) console.error(`${error.code}: ${error.message}`);
  else console.error(error instanceof Error ? `${error.name}: ${error.message}` : error);
  process.exitCode = 1;
}
