"""The corpus: documents, their chunks, and the segments of the lexical index.

One more table, `postings`, has no model, because Tortoise knows no key of two columns:

    CREATE TABLE postings (
        term text COLLATE "C" NOT NULL,
        segment_id bigint NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
        entries integer[] NOT NULL,
        PRIMARY KEY (term, segment_id)
    );

`rag.analysis.terms` says what an entry is.
"""

from __future__ import annotations

from tortoise import fields
from tortoise.contrib.postgres.fields import ArrayField
from tortoise.indexes import Index
from tortoise.models import Model


class Generation(Model):
    """One build of the index with one set of settings. Retrieval reads the one that `is_current`.

    `embedding_model` made its vectors, empty where it has none; every chunk had one when `has_vectors` became true.
    `vectors_version` rises whenever vectors were added. `vectors_level` is no longer used.
    """

    id = fields.BigIntField(primary_key=True)
    settings = fields.TextField()
    is_current = fields.BooleanField(default=False)
    embedding_model = fields.TextField(default="", db_default="")
    has_vectors = fields.BooleanField(default=False, db_default=False)
    vectors_version = fields.BigIntField(default=0, db_default=0)
    vectors_level = fields.FloatField(null=True)
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


class ChunkVector(Model):
    """A chunk's embedding: half-precision numbers of a vector of length 1, little-endian."""

    chunk: fields.OneToOneRelation[Chunk] = fields.OneToOneField(
        "models.Chunk", related_name="vector", on_delete=fields.CASCADE, primary_key=True
    )
    vector = fields.BinaryField()

    class Meta:
        """Table and keys."""

        table = "chunk_vectors"


class Folder(Model):
    """A folder of the corpus that held something when it was last read.

    `identity`, its device and inode, tells it from another folder of that name: one where a disk is to be mounted.
    """

    path = fields.CharField(max_length=4096, primary_key=True)
    identity = fields.TextField()

    class Meta:
        """Table and keys."""

        table = "folders"


class ReindexRun(Model):
    """One run of reindexing; `ended_at` is null while it works, or where its process died.

    `documents_done` of `documents_total`; those that were unchanged at the start count as done from the start.
    `plan` is what a helper needs to know where the run is shared, empty where it is not.
    """

    id = fields.BigIntField(primary_key=True)
    started_at = fields.DatetimeField(auto_now_add=True)
    ended_at = fields.DatetimeField(null=True)
    documents_total = fields.IntField(default=0, db_default=0)
    documents_done = fields.IntField(default=0, db_default=0)
    documents_unchanged = fields.IntField(default=0, db_default=0)
    chunks = fields.BigIntField(default=0, db_default=0)
    error = fields.TextField(null=True)
    plan = fields.TextField(default="", db_default="")

    class Meta:
        """Table and keys."""

        table = "reindex_runs"


class IndexUnit(Model):
    """Files that are indexed together, by whichever worker claims them.

    `owner` works on it until `lease_until`; one that `is_left` is the coordinator's alone, because a helper could
    not do it. `done_at` is set in the transaction of the chunks; then `files` is empty, and `outcome` says what
    became of them.
    """

    id = fields.BigIntField(primary_key=True)
    run: fields.ForeignKeyRelation[ReindexRun] = fields.ForeignKeyField(
        "models.ReindexRun", related_name="units", on_delete=fields.CASCADE
    )
    files = fields.TextField()
    is_left = fields.BooleanField(default=False, db_default=False)
    owner = fields.TextField(null=True)
    lease_until = fields.DatetimeField(null=True)
    done_at = fields.DatetimeField(null=True)
    documents = fields.IntField(default=0, db_default=0)
    chunks = fields.IntField(default=0, db_default=0)
    outcome = fields.TextField(default="", db_default="")

    class Meta:
        """Table and keys."""

        table = "index_units"
        indexes = (Index(fields=("run_id",)),)
