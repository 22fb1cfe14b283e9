"""The corpus: documents, their chunks, and the segments of the lexical index.

One more table, `postings`, has no model, because Tortoise knows no key of two columns:

    CREATE TABLE postings (
        term text COLLATE "C" NOT NULL,
        segment_id bigint NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
        entries integer[] NOT NULL,
        PRIMARY KEY (term, segment_id)
    );

`rag.lexical` says what an entry is.
"""

from __future__ import annotations

from tortoise import fields
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.indexes import Index
from tortoise.models import Model


class Generation(Model):
    """One build of the index with one set of settings. Retrieval reads the one that `is_current`."""

    id = fields.BigIntField(primary_key=True)
    settings = fields.TextField()
    is_current = fields.BooleanField(default=False)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        """Table and keys."""

        table = "generations"


class Document(Model):
    """One file of the corpus folder.

    `content_hash` is that of the content that is indexed in the current generation, null where none is;
    `next_hash` is the same for a generation that is being built. `stamp` is the file's size, times and inode
    when it was read. `error` says why the file's present content could not be indexed, null if it could.
    """

    id = fields.BigIntField(primary_key=True)
    path = fields.CharField(max_length=4096, unique=True)
    content_hash = fields.CharField(max_length=64, null=True)
    next_hash = fields.CharField(max_length=64, null=True)
    stamp = fields.TextField(default="")
    title = fields.TextField(default="")
    date = fields.TextField(default="")
    tags: fields.JSONField[list[str]] = fields.JSONField(default=list)
    error = fields.TextField(null=True)
    size_bytes = fields.BigIntField(default=0)
    indexed_at = fields.DatetimeField(null=True)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        """Table and keys."""

        table = "documents"


class Segment(Model):
    """Chunks that were indexed together.

    `chunk_ids` maps an entry's ordinal, counted from 0, to its chunk. Chunks that were deleted since stay in
    it until the segment is merged: `dead_count` of `chunk_count`. `term_count` is the sum of their lengths.
    """

    id = fields.BigIntField(primary_key=True)
    generation: fields.ForeignKeyRelation[Generation] = fields.ForeignKeyField(
        "models.Generation", related_name="segments", on_delete=fields.CASCADE
    )
    chunk_ids: fields.Field[list[int]] = ArrayField(element_type="bigint")
    chunk_count = fields.IntField()
    dead_count = fields.IntField(default=0)
    term_count = fields.BigIntField()

    class Meta:
        """Table and keys."""

        table = "segments"
        indexes = (Index(fields=("generation_id",)),)


class Chunk(Model):
    """One chunk: `text` is the document's characters from `start_offset` to `end_offset`.

    `content_hash` is the hash of all that is indexed of it (title, heading and text); a chunk whose hash is
    unchanged keeps its row when its document is indexed again. `term_count` is its length in index terms.
    """

    id = fields.BigIntField(primary_key=True)
    document: fields.ForeignKeyRelation[Document] = fields.ForeignKeyField(
        "models.Document", related_name="chunks", on_delete=fields.CASCADE
    )
    generation: fields.ForeignKeyRelation[Generation] = fields.ForeignKeyField(
        "models.Generation", related_name="chunks", on_delete=fields.CASCADE
    )
    position = fields.IntField()
    heading = fields.TextField()
    text = fields.TextField()
    start_offset = fields.BigIntField()
    end_offset = fields.BigIntField()
    token_count = fields.IntField()
    term_count = fields.IntField()
    content_hash = fields.BinaryField()

    class Meta:
        """Table and keys."""

        table = "chunks"
        indexes = (Index(fields=("document_id", "position")), Index(fields=("generation_id",)))
