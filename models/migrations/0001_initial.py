"""The whole schema: conversations, charges and the outbox by their models, the corpus index by SQL."""

from json import loads

from tortoise import fields, migrations
from tortoise.fields.base import OnDelete
from tortoise.fields.data import JSON_DUMPS
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

from models.conversation import MessageRole, MessageStatus

# The texts of a session's prompts, each once, by the SHA-256 of its UTF-8 in hexadecimal digits.
_PROMPT_TEXTS = """
CREATE TABLE prompt_texts (
    session_id bigint NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    hash varchar(64) NOT NULL,
    text text NOT NULL,
    PRIMARY KEY (session_id, hash)
);
"""

# No model queries the corpus index, so its tables have none.
_CORPUS = """
-- One build of the index with one set of settings; retrieval reads the one that is current.
CREATE TABLE generations (
    id bigserial PRIMARY KEY,
    settings text NOT NULL,
    is_current boolean NOT NULL DEFAULT false,
    embedding_model text NOT NULL DEFAULT '',      -- the model of its vectors; empty without vectors
    has_vectors boolean NOT NULL DEFAULT false,    -- true once every chunk has a vector
    vectors_version bigint NOT NULL DEFAULT 0,     -- rises whenever vectors are added
    created_at timestamptz NOT NULL DEFAULT now()
);

-- One file of the corpus folder.
CREATE TABLE documents (
    id bigserial PRIMARY KEY,
    path varchar(4096) NOT NULL UNIQUE,
    content_hash varchar(64),                      -- of the content in the current generation; null: not indexed
    next_hash varchar(64),                         -- the same for the generation that is being built
    stamp text NOT NULL DEFAULT '',                -- size, times and inode of the file when it was read
    title text NOT NULL DEFAULT '',
    date text NOT NULL DEFAULT '',
    tags jsonb NOT NULL DEFAULT '[]',
    error text                                     -- why the file's present content could not be indexed
);

-- `text` is the document's characters from `start_offset` to `end_offset`. `content_hash` covers title, heading and
-- text: a chunk with an unchanged hash keeps its row. `term_count` is its length in index terms.
CREATE TABLE chunks (
    id bigserial PRIMARY KEY,
    document_id bigint NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    generation_id bigint NOT NULL REFERENCES generations (id) ON DELETE CASCADE,
    position integer NOT NULL,
    heading text NOT NULL,
    text text NOT NULL,
    start_offset bigint NOT NULL,
    end_offset bigint NOT NULL,
    token_count integer NOT NULL,
    term_count integer NOT NULL,
    content_hash bytea NOT NULL
);
CREATE INDEX chunks_document ON chunks (document_id, position);
CREATE INDEX chunks_generation ON chunks (generation_id);

-- Chunks that were indexed together. `chunk_ids` maps an entry's ordinal, counted from 0, to its chunk. A deleted
-- chunk stays in it until the segment is merged: `dead_count` of `chunk_count`.
CREATE TABLE segments (
    id bigserial PRIMARY KEY,
    generation_id bigint NOT NULL REFERENCES generations (id) ON DELETE CASCADE,
    chunk_ids bigint[] NOT NULL,
    chunk_count integer NOT NULL,
    dead_count integer NOT NULL DEFAULT 0,
    term_count bigint NOT NULL
);
CREATE INDEX segments_generation ON segments (generation_id);

-- `rag.analysis.terms` describes an entry.
CREATE TABLE postings (
    term text COLLATE "C" NOT NULL,
    segment_id bigint NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    entries integer[] NOT NULL,
    PRIMARY KEY (term, segment_id)
);

-- A chunk's embedding: a vector of length 1 in half-precision numbers, little-endian.
CREATE TABLE chunk_vectors (
    chunk_id bigint PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
    vector bytea NOT NULL
);
-- Vectors do not compress; trying costs time at every write.
ALTER TABLE chunk_vectors ALTER COLUMN vector SET STORAGE EXTERNAL;

-- A folder that held something when it was last read; `identity` is its device and inode.
CREATE TABLE folders (
    path varchar(4096) PRIMARY KEY,
    identity text NOT NULL
);

-- One reindex. `ended_at` is null while it runs, and where its process died. `plan` is what other workers need to
-- know of a shared run.
CREATE TABLE reindex_runs (
    id bigserial PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    documents_total integer NOT NULL DEFAULT 0,
    documents_done integer NOT NULL DEFAULT 0,
    documents_unchanged integer NOT NULL DEFAULT 0,
    chunks bigint NOT NULL DEFAULT 0,
    error text,
    plan text NOT NULL DEFAULT ''
);

-- Files of a shared run that one worker indexes together. `owner` holds it until `lease_until`; a unit that `is_left`
-- is the coordinator's. `done_at`, `outcome` and the chunks are written in one transaction.
CREATE TABLE index_units (
    id bigserial PRIMARY KEY,
    run_id bigint NOT NULL REFERENCES reindex_runs (id) ON DELETE CASCADE,
    files text NOT NULL,
    is_left boolean NOT NULL DEFAULT false,
    owner text,
    lease_until timestamptz,
    done_at timestamptz,
    documents integer NOT NULL DEFAULT 0,
    chunks integer NOT NULL DEFAULT 0,
    outcome text NOT NULL DEFAULT ''
);
CREATE INDEX index_units_run ON index_units (run_id);
"""


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="Session",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user_uuid", fields.UUIDField()),
                ("session_id", fields.CharField(max_length=128)),
                ("summary", fields.TextField(null=True, unique=False)),
                ("summary_until", fields.BigIntField(null=True)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={
                "table": "sessions",
                "app": "models",
                "unique_together": (("user_uuid", "session_id"),),
                "pk_attr": "id",
                "table_description": "A conversation of one user. The same `session_id` of two users is two sessions.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Message",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                (
                    "session",
                    fields.ForeignKeyField(
                        "models.Session",
                        source_field="session_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="messages",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("job_id", fields.CharField(max_length=256)),
                (
                    "role",
                    fields.CharEnumField(
                        description="USER: user\nASSISTANT: assistant", enum_type=MessageRole, max_length=16
                    ),
                ),
                ("content", fields.TextField(unique=False)),
                ("summary", fields.TextField(null=True, unique=False)),
                (
                    "status",
                    fields.CharEnumField(
                        default=MessageStatus.COMPLETED,
                        description="COMPLETED: completed\nFAILED: failed\nCANCELLED: cancelled",
                        enum_type=MessageStatus,
                        max_length=16,
                    ),
                ),
                ("finish_reason", fields.CharField(null=True, max_length=64)),
                ("provider", fields.CharField(null=True, max_length=32)),
                ("model", fields.TextField(null=True, unique=False)),
                ("prompt", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("usage", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("sources", fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads)),
                ("attempt", fields.IntField(default=1)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={
                "table": "messages",
                "app": "models",
                "unique_together": (("job_id", "role"),),
                "indexes": [Index(fields=["session_id", "id"])],
                "pk_attr": "id",
                "table_description": "One question or one answer.",
            },
            bases=["Model"],
        ),
        ops.RunSQL(sql=_PROMPT_TEXTS, reverse_sql="DROP TABLE prompt_texts"),
        ops.CreateModel(
            name="Charge",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("job_id", fields.CharField(max_length=256)),
                ("attempt", fields.IntField()),
                ("user_uuid", fields.UUIDField(null=True)),
                ("provider", fields.CharField(max_length=32)),
                ("model", fields.TextField(unique=False)),
                ("input_tokens", fields.IntField()),
                ("output_tokens", fields.IntField(default=0)),
                ("cost", fields.DecimalField(null=True, max_digits=18, decimal_places=10)),
                ("estimated", fields.BooleanField(default=True)),
                ("outcome", fields.CharField(null=True, max_length=32)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "charges",
                "app": "models",
                "unique_together": (("job_id", "attempt"),),
                "indexes": [Index(fields=["user_uuid", "created_at"])],
                "pk_attr": "id",
                "table_description": "What one attempt of a job cost at the provider, written before its request is sent and again when it is over.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="OutboxJob",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("job_id", fields.CharField(unique=True, max_length=256)),
                ("function", fields.TextField(unique=False)),
                ("arguments", fields.JSONField(encoder=JSON_DUMPS, decoder=loads)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "outbox_jobs",
                "app": "models",
                "pk_attr": "id",
                "table_description": "A job to enqueue, committed together with what it follows; the relay deletes it once it is queued.",
            },
            bases=["Model"],
        ),
        ops.RunSQL(
            sql=_CORPUS,
            reverse_sql=(
                "DROP TABLE index_units, reindex_runs, folders, chunk_vectors, postings, segments, chunks, documents, "
                "generations"
            ),
        ),
    ]
