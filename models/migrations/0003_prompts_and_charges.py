from json import loads

from tortoise import fields, migrations
from tortoise.fields.data import JSON_DUMPS
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0002_postings")]

    initial = False

    operations = [
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
                "table_description": "What one attempt of a job cost at the provider, written when its request is sent and again when it is over.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="PromptText",
            fields=[
                ("hash", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("text", fields.TextField(unique=False)),
            ],
            options={
                "table": "prompt_texts",
                "app": "models",
                "pk_attr": "hash",
                "table_description": "A text that was part of a prompt, kept once however many prompts held it: a persona, a passage, a page.",
            },
            bases=["Model"],
        ),
        ops.AddField(
            model_name="Message",
            name="prompt",
            field=fields.JSONField(null=True, encoder=JSON_DUMPS, decoder=loads),
        ),
        ops.AddField(
            model_name="Message",
            name="provider",
            field=fields.CharField(null=True, max_length=32),
        ),
        ops.AddField(
            model_name="Session",
            name="summary",
            field=fields.TextField(null=True, unique=False),
        ),
        ops.AddField(
            model_name="Session",
            name="summary_until",
            field=fields.BigIntField(null=True),
        ),
    ]
