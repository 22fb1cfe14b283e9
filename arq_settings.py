"""The worker's settings: `arq arq_settings.WorkerSettings` starts it."""

from __future__ import annotations

from functools import partial
from typing import Final

import arq.worker
import uvloop
from arq import func
from protostar_client.codec import dump_json, load_json
from protostar_client.contract import (
    GENERATE_CHAT,
    INDEX_DOCUMENTS,
    READ_HISTORY,
    REINDEX_CORPUS,
    ROLL_UP_SESSION,
    SUMMARIZE_MESSAGE,
)

import protostar.collisions  # noqa: F401  (before our packages: ends where another project's would be imported)
from models.database import tortoise_config
from protostar.settings import SettingsError, load_settings
from tasks.arguments import as_job
from tasks.context import about_worker
from tasks.engine.connection import arq_redis_settings
from tasks.engine.worker import Worker
from tasks.generate_chat import generate_chat
from tasks.index_documents import index_documents
from tasks.monitoring.observer import WorkerObserver
from tasks.read_history import read_history
from tasks.reindex_corpus import reindex_corpus
from tasks.retry_policy import MAX_TRIES, ChatRetryPolicy
from tasks.roll_up_session import roll_up_session
from tasks.schedule import CLASSES, REINDEX_TIMEOUT_S, reindex_schedule, slots_served
from tasks.startup import start, stop
from tasks.summarize_message import summarize_message
from tasks.turn.endings import publish_failure

try:
    SETTINGS: Final = load_settings()
except SettingsError as error:
    raise SystemExit(f"protostar: {error}") from None

TORTOISE_ORM: Final = tortoise_config(SETTINGS.database_url.get_secret_value())

# ARQ's command looks its Worker up here, after importing this module: this makes it run ours.
arq.worker.Worker = Worker  # type: ignore[misc]
uvloop.install()


class WorkerSettings:
    """Bare, as ARQ reads it."""

    functions = [
        func(as_job(generate_chat), name=GENERATE_CHAT),
        func(as_job(summarize_message), name=SUMMARIZE_MESSAGE),
        # Without a result of a failure that would keep its id, a later turn can try again.
        func(as_job(roll_up_session), name=ROLL_UP_SESSION, keep_result=0),
        func(as_job(reindex_corpus), name=REINDEX_CORPUS, timeout=REINDEX_TIMEOUT_S),
        func(as_job(index_documents), name=INDEX_DOCUMENTS, timeout=REINDEX_TIMEOUT_S, keep_result=0),
        func(as_job(read_history), name=READ_HISTORY, keep_result=60),  # its client waits for less
    ]
    cron_jobs = reindex_schedule(SETTINGS.reindex_minutes)
    classes = CLASSES
    slots = slots_served(SETTINGS.max_jobs, SETTINGS.serve)
    turn_function = GENERATE_CHAT
    redis_settings = arq_redis_settings(SETTINGS.redis_url.get_secret_value())
    redis_url = SETTINGS.redis_url.get_secret_value()
    on_startup = partial(start, SETTINGS)
    on_shutdown = stop
    on_job_failure = publish_failure
    retry_policy = ChatRetryPolicy()
    observer = WorkerObserver()
    about = about_worker
    max_jobs = SETTINGS.max_jobs
    max_tries = MAX_TRIES
    job_timeout = SETTINGS.job_timeout
    lease_s = SETTINGS.lease
    # An answer's reader is known by its result, so that has to live as long as its events.
    keep_result = max(3600, SETTINGS.event_ttl)
    job_completion_wait = SETTINGS.shutdown_grace
    allow_abort_jobs = True
    job_serializer = dump_json
    job_deserializer = load_json
