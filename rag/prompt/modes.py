"""Loads the prompts folder: one Markdown file per mode, `summary.md`, and optionally `session_summary.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protostar.settings import SHIPPED_PROMPTS_DIR

GENERAL: Final = "general"
PAGE_CONTEXT: Final = "page_context"
SUMMARY: Final = "summary"
SESSION_SUMMARY: Final = "session_summary"

_REQUIRED: Final = (GENERAL, PAGE_CONTEXT, SUMMARY)
_MODE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class PromptsError(Exception):
    """The prompts folder cannot be used. The message names the file and the remedy."""


class UnknownModeError(Exception):
    """A mode does not exist. `modes` lists the existing ones."""

    def __init__(self, mode: str, modes: tuple[str, ...]) -> None:
        super().__init__(f"there is no mode {mode!r}; use one of {', '.join(modes)}")
        self.mode = mode
        self.modes = modes


@dataclass(frozen=True, slots=True)
class Prompts:
    """The personas by mode, and the rules for summaries of an answer and of a session, read at start."""

    personas: Mapping[str, str]
    summary: str
    session_summary: str

    @property
    def modes(self) -> tuple[str, ...]:
        """The chat modes in alphabetical order."""
        return tuple(sorted(self.personas))

    def persona(self, mode: str) -> str:
        """Return the persona of a chat mode.

        Raises:
            UnknownModeError: the folder holds no file of that name.
        """
        try:
            return self.personas[mode]
        except KeyError:
            raise UnknownModeError(mode, self.modes) from None


def load_prompts(folder: Path) -> Prompts:
    """Read every `NAME.md` of a folder; a `README.md` and hidden files are not prompts.

    A folder without `session_summary.md` gets the shipped one.

    Raises:
        PromptsError: the folder or a file is missing, empty, unreadable, or has a name that is not allowed.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".md" and path.is_file())
    except OSError as error:
        raise PromptsError(
            f"the prompts folder {folder} can't be read ({error.strerror}); set PROTOSTAR_PROMPTS_DIR"
        ) from error
    texts = {path.stem: _read(path) for path in paths if path.name != "README.md" and path.name[0] != "."}
    for name in _REQUIRED:
        if name not in texts:
            raise PromptsError(f"{folder / name}.md is missing; copy the shipped one there and edit it")
    summary = texts.pop(SUMMARY)
    session_summary = texts.pop(SESSION_SUMMARY, None) or _read(SHIPPED_PROMPTS_DIR / f"{SESSION_SUMMARY}.md")
    return Prompts(personas=texts, summary=summary, session_summary=session_summary)


def _read(path: Path) -> str:
    if not _MODE.fullmatch(path.stem):
        raise PromptsError(f"{path} can't be a mode; name it with a-z, 0-9, _ and -, at most 64 of them")
    try:
        text = path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PromptsError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise PromptsError(f"{path} can't be read: {error.strerror}") from error
    if not text:
        raise PromptsError(f"{path} is empty; write the rules of this mode into it")
    return text
