"""Reads an environment in which anything may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from protostar.settings import Settings
from protostar.settings_problems import field_of, key_of, problems


@dataclass(frozen=True, slots=True)
class Examined:
    """An environment in which anything may be wrong, as `protostar doctor` needs it.

    `settings` has defaults where variables are `wrong`, and may not be consistent. `problems` has a line for each.
    """

    settings: Settings
    wrong: frozenset[str]
    problems: tuple[str, ...]


def examine() -> Examined:
    """Read everything the environment decides and collect all that is wrong."""
    found: dict[str, str] = {}
    try:
        settings = _Lenient.model_validate({})
    except ValidationError as error:
        found = dict(problems(error, _Lenient))
        settings = _Lenient.model_validate({key_of(variable): _stand_in(variable) for variable in found})
    # A conflict with a default that stands in for a wrong value is not a problem of its own.
    conflicts = [line for line in Settings._conflicts(settings) if not any(variable in line for variable in found)]
    return Examined(settings, frozenset(found), (*found.values(), *conflicts))


class _Lenient(Settings):
    def _conflicts(self) -> Iterator[str]:
        yield from ()


def _stand_in(variable: str) -> Any:
    field = field_of(Settings, variable)
    return "unknown" if field.is_required() else field.default
