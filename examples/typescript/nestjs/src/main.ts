import "reflect-metadata";

import { NestFactory } from "@nestjs/core";

import { AnswersModule } from "./answers.module.js";

const app = await NestFactory.create(AnswersModule, { logger: ["error", "warn"] });
app.enableShutdownHooks();
await app.listen(process.env["PORT"] ?? 3000, "127.0.0.1");
console.log(await app.getUrl());
