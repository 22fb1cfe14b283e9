"""The recipe of a prompt: stored with the answer, so that the prompt can be made again as it was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus
from rag.prompt.parts import PassagePart, PromptParts, TurnPart, compose, prompt_version
from rag.providers import ChatMessage

# Sorted by hash, so that two transactions that store the same texts cannot deadlock.
_STORE: Final = """
INSERT INTO prompt_texts (session_id, hash, text)
SELECT $1::bigint, hash, text FROM unnest($2::varchar[], $3::text[]) AS t (hash, text) ORDER BY hash
ON CONFLICT (session_id, hash) DO NOTHING
"""
_TEXTS: Final = "SELECT hash, text FROM prompt_texts WHERE session_id = $1 AND hash = ANY ($2::varchar[])"
_TAG_CODE: Final = """
SELECT prompt ->> 'tag_code' AS tag_code FROM messages
WHERE (session_id, id) > ($1::bigint, 0) AND (session_id, id) < ($1::bigint, $2::bigint) AND prompt IS NOT NULL
ORDER BY session_id DESC, id DESC LIMIT 1
"""


class RecipeError(Exception):
    """A prompt cannot be made again; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a prompt again: the JSON that its message stores (`fields`), and the texts by their hashes."""

    fields: dict[str, Any]
    texts: dict[str, str]

    @classmethod
    def of(cls, parts: PromptParts, messages: Sequence[ChatMessage], *, parameters: Mapping[str, Any]) -> Recipe:
        """Describe a request: its messages, the parts they are made of, and its parameters as JSON values."""
        texts: dict[str, str] = {}

        def keep(text: str) -> str | None:
            if not text:
                return None
            texts[_hash(text)] = text
            return _hash(text)

        fields = {
            "version": prompt_version(parts.persona),
            "tag_code": parts.tag_code,
            "persona": keep(parts.persona),
            "question": keep(parts.question),
            "session_summary": keep(parts.session_summary),
            "turns": [{**asdict(t), "question": keep(t.question), "answer": keep(t.answer)} for t in parts.turns],
            "passages": [{**asdict(p), "text": keep(p.text)} for p in parts.passages],
            "page": keep(parts.page),
            "page_is_cut": parts.page_is_cut,
            "messages": _hash_of_messages(messages),
            "parameters": dict(parameters),
        }
        return cls(fields, texts)

    async def store_texts(self, connection: BaseDBAsyncClient, session_id: int) -> None:
        """Store the texts that the session does not have yet; they are deleted with the session."""
        await connection.execute_query(_STORE, [session_id, list(self.texts), list(self.texts.values())])


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """A prompt as it was sent. `model` is the one that answered; `parameters` names the one that was asked first."""

    job_id: str
    attempt: int
    provider: str | None
    model: str | None
    version: str
    parameters: dict[str, Any]
    messages: list[ChatMessage]


async def session_tag_code(database: BaseDBAsyncClient, session_id: int, *, before: int) -> str | None:
    """Read the tag code of a session: that of the newest prompt before a message; None where there is no prompt yet.

    Prompts of one session have one code, so that a provider can cache what they begin with.
    """
    rows = await database.execute_query_dict(_TAG_CODE, [session_id, before])
    return rows[0]["tag_code"] if rows else None


async def load_prompt(database: BaseDBAsyncClient, job_id: str) -> SentPrompt:
    """Make the prompt of a turn again, as its last attempt sent it.

    Raises:
        RecipeError: there is no such turn, it has no prompt, or this version would make another one.
    """
    answer = await Message.get_or_none(job_id=job_id, role=MessageRole.ASSISTANT, using_db=database)
    if answer is None or answer.prompt is None:
        raise RecipeError(await _why_none(database, job_id, answer))
    recipe: dict[str, Any] = dict(answer.prompt)
    texts = await _texts(database, answer.session_id, recipe, job_id)  # type: ignore[attr-defined]  # Tortoise adds it
    messages = compose(_parts(recipe, texts))
    if _hash_of_messages(messages) != recipe["messages"]:
        raise RecipeError(
            f"the prompt of job {job_id} was made by another version of Protostar, which puts its parts together "
            "in another way; run that version's command"
        )
    return SentPrompt(
        job_id, answer.attempt, answer.provider, answer.model, recipe["version"], recipe["parameters"], messages
    )


async def _why_none(database: BaseDBAsyncClient, job_id: str, answer: Message | None) -> str:
    if answer is not None and answer.status is MessageStatus.COMPLETED:
        return f"job {job_id} was answered by an older version of Protostar, which stored no prompts"
    if answer is not None:
        return f"the turn of job {job_id} ended ({answer.status.value}) before a prompt was made, so there is none"
    if await Message.exists(job_id=job_id, role=MessageRole.USER, using_db=database):
        return f"the turn of job {job_id} has not ended; its prompt is stored when it ends"
    return f"there is no turn of a job {job_id}; give the id of a generate_chat job that has started"


def _parts(recipe: Mapping[str, Any], text: Mapping[str | None, str]) -> PromptParts:
    turns, passages = recipe["turns"], recipe["passages"]
    return PromptParts(
        persona=text[recipe["persona"]],
        question=text[recipe["question"]],
        tag_code=recipe["tag_code"],
        session_summary=text[recipe["session_summary"]],
        turns=tuple(TurnPart(text[t["question"]], text[t["answer"]], t["is_summary"]) for t in turns),
        passages=tuple(PassagePart(**{**part, "text": text[part["text"]]}) for part in passages),
        page=text[recipe["page"]],
        page_is_cut=recipe["page_is_cut"],
    )


async def _texts(
    database: BaseDBAsyncClient, session_id: int, recipe: Mapping[str, Any], job_id: str
) -> dict[str | None, str]:
    """Read the texts that a recipe names, by their hashes; None stands for the empty text."""
    hashes = {recipe[name] for name in ("persona", "question", "session_summary", "page")}
    hashes |= {turn[name] for turn in recipe["turns"] for name in ("question", "answer")}
    hashes |= {passage["text"] for passage in recipe["passages"]}
    hashes -= {None}
    rows = await database.execute_query_dict(_TEXTS, [session_id, list(hashes)])
    if len(rows) < len(hashes):
        raise RecipeError(f"{len(hashes) - len(rows)} texts of the prompt of job {job_id} are missing in prompt_texts")
    return {None: "", **{row["hash"]: row["text"] for row in rows}}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of_messages(messages: Sequence[ChatMessage]) -> str:
    return _hash(json.dumps(messages, ensure_ascii=False, separators=(",", ":")))
