"""Finds the patterns and functions that read text from outside, and measures how their time grows with the text."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import pkgutil
import re
import re._constants as kinds  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final

import regex  # type: ignore[import-untyped]

PRODUCT: Final = ("protostar_client", "protostar", "models", "rag", "tasks", "gateway")

PATTERN_TYPES: Final = (re.Pattern, regex.Pattern)

RUNS: Final = (
    "가", "가나다", "무엇", "에서", "7", "1,", "1.", "1,1.", "3만", "2026-12-", " ", "\n", "\n\n", "\r\n", "\t", "a",
    "A", "aA", "a.", "a_", "_", "가a", "가 ", "a ", "á", "\u0301",
    "<think>", "</", "-", "|", "-|", "| - ", "--|", ": ", "- ", "*", "# ", "#", "`", "```\n", "~~~\n", "a`", "\"", "'",
    "…", ".", ". ", "다.", "\ud55c.", "a\n", "1\n", "=\n", "---\n", "data: ", "context length ",
    "prompt is too long ", "\u0301\u0316", "\u1100\u1161\u11a8", "[", "]", "(", ")", "{", "<", ">",
)  # fmt: skip
"""Repeated, these are the texts that patterns are slow at. `_pumps` adds those that a pattern itself names."""

ENDS: Final = ("", "\0", "가", "9")

SIZES: Final = (5, 20, 80, 320, 1_280, 5_120, 20_480)
"""From a size at which an exponential pattern still ends."""
SLOW_RATIO: Final = 8.0
LEAST_MEASURED_S: Final = 0.001
ENOUGH_S: Final = 0.05
"""A text that takes longer has shown how its time grows."""
TRIES: Final = 5


def modules() -> Iterator[ModuleType]:
    """Import and yield every module of the product."""
    for name in PRODUCT:
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            continue
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            if "migrations" not in found.name and not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def patterns() -> dict[str, re.Pattern[str]]:
    """Find every pattern over text: compiled ones, also inside containers and classes, and inline ones.

    An inline pattern that depends on a function's variables is not found: its function must be.
    """
    found: dict[str, re.Pattern[str]] = {}
    for module in modules():
        for pattern in _held(vars(module), module.__name__, set()):
            found[f"{module.__name__}: {pattern.pattern}"] = pattern
        held = {pattern.pattern for name, pattern in found.items() if name.startswith(f"{module.__name__}: ")}
        for line, inline in _inline(module):
            if inline.pattern in held:
                continue
            found[f"{module.__name__}:{line}: {inline.pattern}"] = inline
    return found


def _held(value: object, module: str, seen: set[int]) -> Iterator[re.Pattern[str]]:
    """The patterns that a module's variables, containers and classes hold."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, PATTERN_TYPES):
        yield _over_text(value)
    elif isinstance(value, Mapping):
        for part in list(value.values()):
            yield from _held(part, module, seen)
        for key in value:
            if isinstance(key, (*PATTERN_TYPES, tuple, frozenset)):
                yield from _held(key, module, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _held(part, module, seen)
    elif isinstance(value, type) and value.__module__ == module:
        yield from _held(dict(vars(value)), module, seen)
    elif callable(value) and isinstance(getattr(value, "__self__", None), PATTERN_TYPES):
        yield _over_text(typing.cast("Any", value).__self__)
    elif type(value).__module__ == module:
        held = getattr(value, "__dict__", None)
        slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
        yield from _held([held, *slots], module, seen)


def _inline(module: ModuleType) -> Iterator[tuple[int, re.Pattern[str]]]:
    """The patterns of calls of `re` in a module's functions."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except OSError:  # an empty `__init__.py`
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
            continue
        if not isinstance(node.func.value, ast.Name) or node.func.value.id not in ("re", "regex"):
            continue
        if node.func.attr in ("escape", "purge"):
            continue
        expression = compile(ast.Expression(node.args[0]), module.__name__, "eval")
        try:
            source = eval(expression, dict(vars(module)))
        except NameError:
            continue
        library = regex if node.func.value.id == "regex" else re
        yield node.lineno, _over_text(library.compile(source) if isinstance(source, str | bytes) else source)


def _over_text(pattern: re.Pattern[Any]) -> re.Pattern[str]:
    if isinstance(pattern.pattern, bytes):
        return re.compile(pattern.pattern.decode("latin-1"), pattern.flags & ~re.LOCALE)
    return pattern


def texts_for(pattern: re.Pattern[str]) -> list[tuple[str, str, str]]:
    """Texts that may be slow to match, as (start, repeated, end)."""
    repeated = [("", run) for run in RUNS]
    if isinstance(pattern, re.Pattern):  # those of `regex` have a syntax of their own
        repeated += _pumps(list(parser.parse(pattern.pattern, pattern.flags)))
    return [(start, run, end) for start, run in dict.fromkeys(repeated) for end in ENDS]


def _pumps(nodes: Sequence[Any], before: str = "") -> list[tuple[str, str]]:
    """For each repetition in a parsed pattern: a text that leads up to it, and a text that it repeats.

    The whole so far is repeated, too: a search starts anew at each.
    """
    found: list[tuple[str, str]] = []
    for node in nodes:
        for inner in _inner(node):
            found += _pumps(inner, before)
        piece = _sample([node])
        if node[0] in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT) and node[1][1] > 8:
            body = _sample(node[1][2])
            found += [(before, body), ("", before + body)] if body else []
        before += piece
    return [*found, ("", before)] if before else found


def _inner(node: Any) -> Iterator[Sequence[Any]]:
    kind, value = node
    if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
        yield value[2]
    elif kind is kinds.SUBPATTERN:
        yield value[3]
    elif kind is kinds.ATOMIC_GROUP:
        yield value
    elif kind is kinds.BRANCH:
        yield from value[1]
    elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
        yield value[1]


def _sample(nodes: Sequence[Any]) -> str:
    """A text that the nodes of a parsed pattern match, or nearly."""
    text = ""
    for kind, value in nodes:
        if kind is kinds.LITERAL:
            text += chr(value)
        elif kind is kinds.NOT_LITERAL:
            text += "x" if value != ord("x") else "y"
        elif kind is kinds.ANY:
            text += "x"
        elif kind is kinds.IN:
            text += _member(value)
        elif kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            text += _sample(value[2]) * max(1, min(value[0], 8))
        elif kind is kinds.BRANCH:
            text += _sample(value[1][0])
        elif kind is kinds.SUBPATTERN:
            text += _sample(value[3])
        elif kind is kinds.ATOMIC_GROUP:
            text += _sample(value)
    return text


def _member(members: Sequence[Any]) -> str:
    """A character of a class."""
    classes = {"DIGIT": "7", "SPACE": " ", "WORD": "w", "NOT_DIGIT": "x", "NOT_SPACE": "x", "NOT_WORD": "-"}
    kind, value = members[0]
    if kind is kinds.NEGATE:
        one = "".join(_member([member]) for member in members[1:])
        return next((char for char in "x7 가.-\n" if char not in one), "z")
    if kind is kinds.LITERAL:
        return chr(value)
    if kind is kinds.RANGE:
        return chr(value[0])
    return classes.get(str(value).removeprefix("CATEGORY_"), "x")


def matching(pattern: re.Pattern[str]) -> Callable[[str], object]:
    """Look for a pattern everywhere in a text, and match the whole text."""

    def match(text: str) -> None:
        for _ in pattern.finditer(text):
            pass
        pattern.fullmatch(text)

    return match


def functions(*packages: str) -> dict[str, Callable[[str], object]]:
    """The public functions of some packages whose first parameter is a `str`, each as a function of that text.

    Further required parameters get a value by their annotation: the same text, a number, a counter of characters. A
    function with any other required parameter is left out.
    """
    found: dict[str, Callable[[str], object]] = {}
    for module in modules():
        if not any(f"{module.__name__}.".startswith(f"{package}.") for package in packages):
            continue
        for name, function in vars(module).items():
            if name[0] == "_" or not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            if inspect.iscoroutinefunction(function):
                continue
            if (of_text := _of_text(function)) is not None:
                found[f"{module.__name__}.{name}"] = of_text
    return found


def _of_text(function: Callable[..., Any]) -> Callable[[str], object] | None:
    parameters = [
        parameter
        for parameter in inspect.signature(function, eval_str=True).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    if not parameters or parameters[0].annotation is not str:
        return None
    if any(_argument(parameter.annotation, "", parameter.name) is None for parameter in parameters):
        return None

    def call(text: str) -> None:
        arguments: dict[str, Any] = {p.name: _argument(p.annotation, text, p.name) for p in parameters}
        bound = inspect.signature(function).bind(**arguments)
        result = function(*bound.args, **bound.kwargs)
        if inspect.isgenerator(result):
            for _ in result:
                pass

    return call


def _argument(annotation: object, text: str, name: str) -> Any:
    if annotation is str:
        return text
    if annotation in (int, float):
        return 1_000_000 if name == "context_window" else 1_000
    if annotation is bool:
        return True
    if typing.get_origin(annotation) is Callable and typing.get_args(annotation) == ([str], int):
        return len
    if typing.get_origin(annotation) is Sequence and typing.get_args(annotation) == (str,):
        return [text]
    return None


def slow_at(function: Callable[[str], object], texts: Sequence[tuple[str, str, str]]) -> str:
    """The text at which a function's time grows faster than linearly; empty where there is none."""
    for start, run, end in texts:
        shorter_s = 0.0
        for size in SIZES:
            time_s = _cpu_s(function, start, run, end, size, 1)
            if time_s > LEAST_MEASURED_S and time_s > SLOW_RATIO * shorter_s and size != SIZES[0]:
                ratio = _ratio(function, start, run, end, size)
                if ratio > SLOW_RATIO:
                    return f"{start!r} + {run!r} repeated + {end!r}: {ratio:.0f} times as long for 4 times the text"
            if time_s > ENOUGH_S:
                break
            shorter_s = time_s
    return ""


def _ratio(function: Callable[[str], object], start: str, run: str, end: str, size: int) -> float:
    """The least times of several runs of a text, by those of a fourth of it."""
    times_s = [_cpu_s(function, start, run, end, at, TRIES) for at in (size, size // 4)]
    return times_s[0] / max(times_s[1], 1e-6) if times_s[0] > LEAST_MEASURED_S else 0.0


def _cpu_s(function: Callable[[str], object], start: str, run: str, end: str, size: int, tries: int) -> float:
    """The least CPU seconds of some calls. The text differs each time: a function may remember texts."""
    least_s = float("inf")
    gc.disable()
    try:
        for number in range(tries):
            text = start + run * (size // len(run) + number) + end
            begin_s = time.thread_time()
            function(text)
            least_s = min(least_s, time.thread_time() - begin_s)
    finally:
        gc.enable()
    return least_s
