"""Runs Protostar on this machine: starts Redis, PostgreSQL, a model server and a worker for you.

Without a command: a tour. The servers listen on no network port but the model server's and `web`'s, on loopback;
everything ends with this program. What it stores is in .protostar/; for root, where that can't be reached by
another account, in a folder of the temporary directory.
"""

from __future__ import annotations

import signal

# Until `main` can clean up there is nothing to clean up: Ctrl-C ends the imports without a word.
signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from stack.conversation import Conversation
from stack.errors import StackError
from stack.parts import ROOT, SAMPLE_CORPUS, STATE, Parts, remove_state, running_parts
from stack.tour import show_tour
from stack.web import PORT, running_gateway

with contextlib.suppress(ImportError):
    import readline  # noqa: F401  # gives `input` an editable line

_WATCH_S: Final = 0.5
_EPILOG: Final = """\
With OPENAI_API_KEY or OPENROUTER_API_KEY and PROTOSTAR_CHAT_MODEL set (and OPENAI_BASE_URL for
a server of your own), that model answers. Otherwise a local stand-in does, by quoting what was found.
"""


def main() -> None:
    """Run the command; exit codes: 0 done, 1 failed (one line says why), 2 wrong use, 130 Ctrl-C."""
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    arguments = _parser().parse_args()
    try:
        arguments.run(arguments)
    except StackError as error:
        _console(stderr=True).print(f"demo: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # as with `./demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.set_defaults(run=_tour, corpus=SAMPLE_CORPUS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    up = "keep the servers running for a shell of yours, and print its environment; starts no worker"
    for name, run, text in [
        ("ask", _ask, "answer one question: the answer on standard output, the rest on standard error"),
        ("chat", _chat, "hold a conversation"),
        ("web", _web, "answer in a browser: a gateway and a chat page on loopback, until Ctrl-C"),
        ("up", _up, up),
        ("reset", _reset, "remove what earlier runs have stored"),
    ]:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if run is not _reset:
            command.add_argument(
                "--corpus",
                metavar="DIR",
                type=_folder,
                default=SAMPLE_CORPUS,
                help="a folder of your own Markdown files (default: the sample corpus)",
            )
        if run is _ask:
            command.add_argument("question", metavar="QUESTION")
        if run is _web:
            command.add_argument("--port", type=int, default=PORT, help="0 takes a free one (default: %(default)s)")
    return parser


def _folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


def _tour(arguments: argparse.Namespace) -> None:
    console = _console(stderr=False)
    with _conversation(arguments.corpus, console, console) as conversation:
        show_tour(conversation, console)


def _ask(arguments: argparse.Namespace) -> None:
    with _conversation(arguments.corpus, _console(stderr=False), _console(stderr=True)) as conversation:
        conversation.ask(arguments.question)


def _chat(arguments: argparse.Namespace) -> None:
    notes = _console(stderr=True)
    with _long_conversation(arguments.corpus, _console(stderr=False), notes) as conversation:
        notes.print("질문을 적어 보세요. Ask away; an empty line or Ctrl-D ends, Ctrl-C cancels an answer.")
        while question := _read_line():
            try:
                conversation.ask(question)
            except KeyboardInterrupt:
                notes.print("\n(cancelled)", style="yellow")


def _read_line() -> str:
    try:
        return input("\n> ").strip()
    except EOFError:
        return ""


def _web(arguments: argparse.Namespace) -> None:
    notes = _console(stderr=True)
    with running_parts(arguments.corpus) as parts:
        _index(parts, arguments.corpus, notes)
        gateway = running_gateway(parts.base, parts.environment, port=arguments.port)
        with parts.worker() as worker, gateway as web:
            print(web.url, flush=True)
            notes.print("Open it in a browser; Ctrl-C here ends everything.")
            while worker.running and web.process.running:
                time.sleep(_WATCH_S)
            ended = web.process if worker.running else worker
            raise StackError(f"a process has ended; the end of {ended.log}:\n{ended.last_lines()}")


def _up(arguments: argparse.Namespace) -> None:
    notes = _console(stderr=True)
    file = STATE / "environment"
    file.unlink(missing_ok=True)  # of a demo that was killed: its servers are gone
    with running_parts(arguments.corpus) as parts:
        _index(parts, arguments.corpus, notes)
        exports = [f"export {name}={shlex.quote(value)}" for name, value in parts.environment.items()]
        exports.append(f'export PATH={shlex.quote(str(ROOT / ".venv/bin"))}:"$PATH"')
        file.write_text("".join(f"{line}\n" for line in exports))
        try:
            print(*exports, sep="\n", flush=True)
            notes.print(f"\nIn another terminal, in {ROOT}:", markup=False)
            notes.print("  . .protostar/environment            # the lines above")
            notes.print("  arq arq_settings.WorkerSettings     # a worker")
            notes.print("  protostar ask '워커가 죽으면 작업은 어떻게 되나요?'")
            notes.print("Ctrl-C here ends the servers.")
            signal.pause()
        finally:
            file.unlink()


def _reset(_arguments: argparse.Namespace) -> None:
    remove_state()


def _console(*, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _conversation(corpus: Path, out: Console, notes: Console) -> Iterator[Conversation]:
    # The worker starts while the corpus is indexed, so it must not index the corpus itself.
    with running_parts(corpus) as parts, parts.worker(PROTOSTAR_REINDEX_MINUTES="0") as worker:
        _index(parts, corpus, notes)
        yield Conversation(parts, worker, out=out, notes=notes)


@contextlib.contextmanager
def _long_conversation(corpus: Path, out: Console, notes: Console) -> Iterator[Conversation]:
    with running_parts(corpus) as parts:
        _index(parts, corpus, notes)  # before the worker starts, which then indexes every change
        with parts.worker() as worker:
            yield Conversation(parts, worker, out=out, notes=notes)


def _index(parts: Parts, corpus: Path, notes: Console) -> None:
    model = "a local stand-in that quotes what was found" if parts.model_server_url else "yours"
    notes.print(f"Redis and PostgreSQL are running; the model is {model}.")
    shown = corpus.relative_to(ROOT) if corpus.is_relative_to(ROOT) else corpus
    notes.print(f"Indexing {shown} ...", markup=False)
    parts.reindex(output=notes.file)


if __name__ == "__main__":
    main()
