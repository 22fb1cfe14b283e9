"""The demo's tour: a question, its sources and summary, and a follow-up that uses the summary."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from stack.conversation import Conversation, printable
from stack.errors import StackError

QUESTION: Final = "워커가 죽으면 그 작업은 몇 초 안에 다른 워커가 이어받나요?"
FOLLOW_UP: Final = "방금 말한 것을 짧게 다시 말해 주세요."
_SHOWN_CHARACTERS: Final = 100

_NEXT: Final = """\
다음에 해 볼 것 · What to try next
  ./demo web                                 a chat page in your browser · 브라우저에서 대화
  ./demo chat                                a conversation · 대화
  ./demo ask "..." --corpus DIR              your own Markdown files · 내 문서로 묻기
  ./demo up                                  the servers alone, for your own worker and scripts
  OPENAI_API_KEY=... PROTOSTAR_CHAT_MODEL=... ./demo     a real model · 실제 모델로\
"""


def show_tour(conversation: Conversation, console: Console) -> None:
    """Ask, wait for the summary, ask again.

    Raises:
        StackError: something failed, or the follow-up was asked without the summary.
    """
    _head(console, f"질문 · Question: {QUESTION}")
    first = conversation.ask(QUESTION)
    _head(console, "요약 · Summary of this answer, made by a second job and stored beside it:")
    summary = conversation.summary(first)
    console.print(printable(summary), markup=False)
    _head(console, f"이어지는 질문 · Follow-up in the same session: {FOLLOW_UP}")
    conversation.ask(FOLLOW_UP)
    if (prompt := conversation.last_prompt()) is not None:
        _head(console, "모델이 받은 프롬프트 · What the model received for the follow-up:")
        _show_prompt(console, prompt, first.text, summary)
    console.print()
    console.print(_NEXT, markup=False)


def _head(console: Console, line: str) -> None:
    console.print()
    console.print(Text(line, style="bold cyan"))


def _show_prompt(console: Console, prompt: list[dict[str, str]], answer: str, summary: str) -> None:
    used = False
    for message in prompt:
        text = _one_line(message["content"])
        shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} …"
        console.print(f"  {message['role']:<10}{len(message['content']):>6} characters  {shown}", markup=False)
        if _one_line(summary) in text:
            used = True
            console.print(
                f"  {'':<10}↳ 지난 답변({len(answer)}자) 대신 그 요약({len(summary)}자)이 들어 있습니다 · "
                "holds the earlier answer's summary in its place",
                style="green",
            )
    if not used:
        raise StackError("the follow-up's prompt did not hold the summary")


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
