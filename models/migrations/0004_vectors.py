"""Vectors of chunks, for a generation with an embedding model."""

from tortoise import fields, migrations
from tortoise.fields.base import OnDelete
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0003_prompts_and_charges")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Generation",
            name="embedding_model",
            field=fields.TextField(default="", db_default="", unique=False),
        ),
        ops.AddField(
            model_name="Generation",
            name="has_vectors",
            field=fields.BooleanField(default=False, db_default=False),
        ),
        ops.AddField(
            model_name="Generation",
            name="vectors_version",
            field=fields.BigIntField(default=0, db_default=0),
        ),
        ops.CreateModel(
            name="ChunkVector",
            fields=[
                (
                    "chunk",
                    fields.OneToOneField(
                        "models.Chunk",
                        source_field="chunk_id",
                        primary_key=True,
                        db_constraint=True,
                        to_field="id",
                        related_name="vector",
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
                ("vector", fields.BinaryField()),
            ],
            options={
                "table": "chunk_vectors",
                "app": "models",
                "pk_attr": "chunk_id",
                "table_description": "A chunk's embedding: half-precision numbers of a vector of length 1, little-endian.",
            },
            bases=["Model"],
        ),
        # Vectors do not compress; trying costs time at every write.
        ops.RunSQL(
            sql="ALTER TABLE chunk_vectors ALTER COLUMN vector SET STORAGE EXTERNAL",
            reverse_sql="ALTER TABLE chunk_vectors ALTER COLUMN vector SET STORAGE EXTENDED",
        ),
    ]
