"""Which folder is which, and how far a reindex is."""

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0004_vectors")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Folder",
            fields=[
                ("path", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=4096)),
                ("identity", fields.TextField(unique=False)),
            ],
            options={
                "table": "folders",
                "app": "models",
                "pk_attr": "path",
                "table_description": "A folder of the corpus that held something when it was last read.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ReindexRun",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("started_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("ended_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("documents_total", fields.IntField(default=0, db_default=0)),
                ("documents_done", fields.IntField(default=0, db_default=0)),
                ("documents_unchanged", fields.IntField(default=0, db_default=0)),
                ("chunks", fields.BigIntField(default=0, db_default=0)),
                ("error", fields.TextField(null=True, unique=False)),
            ],
            options={
                "table": "reindex_runs",
                "app": "models",
                "pk_attr": "id",
                "table_description": "One run of reindexing; `ended_at` is null while it works, or where its process died.",
            },
            bases=["Model"],
        ),
    ]
