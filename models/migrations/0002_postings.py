"""The table `postings`, which has a key of two columns and so no model (see `models.corpus`)."""

from tortoise import migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("models", "0001_initial")]

    operations = [
        ops.RunSQL(
            sql="""
                CREATE TABLE postings (
                    term text COLLATE "C" NOT NULL,
                    segment_id bigint NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
                    entries integer[] NOT NULL,
                    PRIMARY KEY (term, segment_id)
                )
            """,
            reverse_sql="DROP TABLE postings",
        ),
    ]
