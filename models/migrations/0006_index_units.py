"""The units of a reindexing run that several workers share."""

from tortoise import fields, migrations
from tortoise.fields.base import OnDelete
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0005_folders_and_runs")]

    initial = False

    operations = [
        ops.AddField(
            model_name="ReindexRun",
            name="plan",
            field=fields.TextField(default="", db_default="", unique=False),
        ),
        ops.CreateModel(
            name="IndexUnit",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                (
                    "run",
                    fields.ForeignKeyField(
                        "models.ReindexRun",
                        source_field="run_id",
                        db_constraint=True,
                        to_field="id",
                        related_name="units",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("files", fields.TextField(unique=False)),
                ("is_left", fields.BooleanField(default=False, db_default=False)),
                ("owner", fields.TextField(null=True, unique=False)),
                ("lease_until", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("done_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("documents", fields.IntField(default=0, db_default=0)),
                ("chunks", fields.IntField(default=0, db_default=0)),
                ("outcome", fields.TextField(default="", db_default="", unique=False)),
            ],
            options={
                "table": "index_units",
                "app": "models",
                "indexes": [Index(fields=["run_id"])],
                "pk_attr": "id",
                "table_description": "Files that are indexed together, by whichever worker claims them.",
            },
            bases=["Model"],
        ),
    ]
