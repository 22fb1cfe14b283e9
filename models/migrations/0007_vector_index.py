"""What PostgreSQL's own index of a generation's vectors is told by."""

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0006_index_units")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Generation",
            name="vectors_level",
            field=fields.FloatField(null=True),
        ),
        # Changes no table: Tortoise learns what the key of a one-to-one relation is called only after creating it.
        ops.AlterModelOptions(
            name="ChunkVector",
            options={
                "table": "chunk_vectors",
                "app": "models",
                "pk_attr": "chunk_id",
                "table_description": "A chunk's embedding: half-precision numbers of a vector of length 1, little-endian.",
            },
        ),
    ]
