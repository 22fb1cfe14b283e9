"""The recipe of a prompt: what is stored of it, so that it can be made again as it was sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tortoise.backends.base.client import BaseDBAsyncClient

from models import Message, MessageRole, MessageStatus, PromptText
from rag.prompt.parts import PassagePart, PromptParts, TurnPart, compose, prompt_version
from rag.providers import ChatMessage

# In the order of their hashes, so that two answers that store the same texts can't wait for each other.
_STORE: Final = """
INSERT INTO prompt_texts (hash, text) SELECT * FROM unnest($1::varchar[], $2::text[]) AS t (hash, text) ORDER BY hash
ON CONFLICT (hash) DO NOTHING
"""


_TAG_CODE: Final = """
SELECT prompt ->> 'tag_code' AS tag_code FROM messages
WHERE (session_id, id) > ($1::bigint, 0) AND (session_id, id) < ($1::bigint, $2::bigint) AND prompt IS NOT NULL
ORDER BY session_id DESC, id DESC LIMIT 1
"""


class RecipeError(Exception):
    """A prompt can't be made again; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a message stores of its prompt (`fields`, JSON), and the texts that are stored beside, by their hashes."""

    fields: dict[str, Any]
    texts: dict[str, str]

    @classmethod
    def of(cls, parts: PromptParts, messages: Sequence[ChatMessage], *, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of what is sent: messages, the parts they were made of, and parameters as JSON values."""
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

    async def store_texts(self, connection: BaseDBAsyncClient) -> None:
        """Keep the texts that are not kept yet."""
        await connection.execute_query(_STORE, [list(self.texts), list(self.texts.values())])


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


async def load_prompt(job_id: str) -> SentPrompt:
    """Make the prompt of a turn again, as its last attempt sent it.

    Raises:
        RecipeError: there is no such turn, it has no prompt, or this version would make another one.
    """
    answer = await Message.get_or_none(job_id=job_id, role=MessageRole.ASSISTANT)
    if answer is None or answer.prompt is None:
        raise RecipeError(await _why_none(job_id, answer))
    recipe: dict[str, Any] = dict(answer.prompt)
    messages = compose(await _parts(recipe, job_id))
    if _hash_of_messages(messages) != recipe["messages"]:
        raise RecipeError(
            f"the prompt of job {job_id} was made by another version of Protostar, which puts its parts together "
            "in another way; run that version's command"
        )
    return SentPrompt(
        job_id, answer.attempt, answer.provider, answer.model, recipe["version"], recipe["parameters"], messages
    )


async def _why_none(job_id: str, answer: Message | None) -> str:
    if answer is not None and answer.status is MessageStatus.COMPLETED:
        return f"job {job_id} was answered by an older version of Protostar, which stored no prompts"
    if answer is not None:
        return f"the turn of job {job_id} ended ({answer.status.value}) before a prompt was made, so there is none"
    if await Message.exists(job_id=job_id, role=MessageRole.USER):
        return f"the turn of job {job_id} has not ended; its prompt is stored when it ends"
    return f"there is no turn of a job {job_id}; give the id of a generate_chat job that has started"


async def _parts(recipe: Mapping[str, Any], job_id: str) -> PromptParts:
    turns, passages = recipe["turns"], recipe["passages"]
    hashes = {recipe[name] for name in ("persona", "question", "session_summary", "page")}
    hashes |= {turn[name] for turn in turns for name in ("question", "answer")} | {part["text"] for part in passages}
    text = await _texts(hashes - {None}, job_id)
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


async def _texts(hashes: set[str], job_id: str) -> dict[str | None, str]:
    """The texts by their hashes; None is the empty one."""
    rows = await PromptText.filter(hash__in=hashes)
    if len(rows) < len(hashes):
        raise RecipeError(f"{len(hashes) - len(rows)} texts of the prompt of job {job_id} are gone from prompt_texts")
    return {None: "", **{row.hash: row.text for row in rows}}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_of_messages(messages: Sequence[ChatMessage]) -> str:
    return _hash(json.dumps(messages, ensure_ascii=False, separators=(",", ":")))
