from json import loads

from tortoise import fields, migrations
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.fields.base import OnDelete
from tortoise.fields.data import JSON_DUMPS
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

from models.conversation import MessageRole, MessageStatus


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="Document",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("path", fields.CharField(unique=True, max_length=4096)),
                ("content_hash", fields.CharField(null=True, max_length=64)),
                ("next_hash", fields.CharField(null=True, max_length=64)),
                ("stamp", fields.TextField(default="", unique=False)),
                ("title", fields.TextField(default="", unique=False)),
                ("date", fields.TextField(default="", unique=False)),
                ("tags", fields.JSONField(default=list, encoder=JSON_DUMPS, decoder=loads)),
                ("error", fields.TextField(null=True, unique=False)),
                ("size_bytes", fields.BigIntField(default=0)),
                ("indexed_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "documents",
                "app": "models",
                "pk_attr": "id",
                "table_description": "One file of the corpus folder.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Generation",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("settings", fields.TextField(unique=False)),
                ("is_current", fields.BooleanField(default=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "generations",
                "app": "models",
                "pk_attr": "id",
                "table_description": "One build of the index with one set of settings. Retrieval reads the one that `is_current`.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Chunk",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                (
                    "document",
                    fields.ForeignKeyField(
                        "models.Document",
                        source_field="document_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="chunks",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                (
                    "generation",
                    fields.ForeignKeyField(
                        "models.Generation",
                        source_field="generation_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="chunks",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("position", fields.IntField()),
                ("heading", fields.TextField(unique=False)),
                ("text", fields.TextField(unique=False)),
                ("start_offset", fields.BigIntField()),
                ("end_offset", fields.BigIntField()),
                ("token_count", fields.IntField()),
                ("term_count", fields.IntField()),
                ("content_hash", fields.BinaryField()),
            ],
            options={
                "table": "chunks",
                "app": "models",
                "indexes": [Index(fields=["document_id", "position"]), Index(fields=["generation_id"])],
                "pk_attr": "id",
                "table_description": "One chunk: `text` is the document's characters from `start_offset` to `end_offset`.",
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
        ops.CreateModel(
            name="Segment",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                (
                    "generation",
                    fields.ForeignKeyField(
                        "models.Generation",
                        source_field="generation_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="segments",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("chunk_ids", ArrayField(element_type="BIGINT")),
                ("chunk_count", fields.IntField()),
                ("dead_count", fields.IntField(default=0)),
                ("term_count", fields.BigIntField()),
            ],
            options={
                "table": "segments",
                "app": "models",
                "indexes": [Index(fields=["generation_id"])],
                "pk_attr": "id",
                "table_description": "Chunks that were indexed together.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Session",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("user_uuid", fields.UUIDField()),
                ("session_id", fields.CharField(max_length=128)),
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
                ("model", fields.TextField(null=True, unique=False)),
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
    ]
