"""Words what is wrong with a variable: its name, its value unless it is a secret, and the remedy."""

from __future__ import annotations

from typing import Final, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_SHOWN_CHARACTERS: Final = 60


def problems(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, str]]:
    """The variables that are wrong and a line on each; an empty name where some don't go together."""
    found: list[tuple[str, str]] = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            found += [("", line) for line in message.splitlines()]
            continue
        name = str(problem["loc"][0])
        variable = name if name.isupper() else f"PROTOSTAR_{name.upper()}"
        found.append((variable, f"{variable} {_what_is_wrong(problem, message, field_of(kind, variable))}"))
    return found


def _what_is_wrong(problem: ErrorDetails, message: str, field: FieldInfo) -> str:
    if problem["type"] == "missing":
        return "is not set; set it (docs/configuration lists every variable)"
    is_secret = SecretStr in (field.annotation, *get_args(field.annotation))
    value = "" if is_secret else f"{str(problem['input'])[:_SHOWN_CHARACTERS]!r} "
    if message.startswith("Input should be"):
        return f"is wrong: {value}is not accepted; it{message.removeprefix('Input').partition(', unable')[0]}"
    return f"is wrong: {value}{message}"


def key_of(variable: str) -> str:
    """Return the name of the field that a variable sets."""
    return variable.removeprefix("PROTOSTAR_").lower() if variable.startswith("PROTOSTAR_") else variable


def field_of(kind: type[BaseModel], variable: str) -> FieldInfo:
    """Return the field that a variable sets."""
    fields = kind.model_fields.items()
    return next(field for name, field in fields if key_of(variable) in (name, field.validation_alias))
