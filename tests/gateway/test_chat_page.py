"""The chat page in headless Chromium; what it shows is compared with what PostgreSQL has stored.

`SCREENSHOTS=1 ./check tests/gateway/test_chat_page.py` takes the pictures in docs/screenshots anew.
"""

from __future__ import annotations

import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from stack.web import Gateway
from tests.support.chat_page import DESKTOP, PHONE, ChatPage, running_browser
from tests.support.stack_under_test import Stack, until
from tests.support.tcp_proxy import TcpProxy
from tests.support.visitor import gateway_before

pytest_plugins = ["tests.support.gateway_fixtures"]

QUESTION = "워커가 죽으면 작업은 누가 이어받나요?"
ANSWER = [
    "워커가 죽으면 그 작업은 다른 워커가 이어받습니다. ",
    "임대 시간은 15초이고, 소유자의 연결이 사라지면 더 일찍 이어받습니다.\n",
    "일시적인 오류는 지수 백오프로 다시 시도합니다.",
]
ENGLISH = ["A lease expires when its worker dies. ", "Another worker then takes the job over.\n", "Nothing is lost."]

Open = Callable[..., Awaitable[ChatPage]]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as running:
        yield running


@pytest.fixture
async def open_page(browser: Browser) -> AsyncIterator[Open]:
    """Opens tabs: of a browser of their own, or in `context`."""
    opened: list[ChatPage] = []

    async def open_one(url: str, *, context: BrowserContext | None = None, **device: Any) -> ChatPage:
        place = context or await browser.new_context(**{"locale": "ko-KR", **DESKTOP, **device})
        opened.append(await ChatPage.open(place, url))
        return opened[-1]

    yield open_one
    for page in opened:
        page.check()


def hold(stack: Stack, pieces: list[str], *, after: int, contains: str = QUESTION) -> str:
    """Have the next answer wait after so many pieces; the gate that lets it go on."""
    gate = uuid4().hex
    stack.model.script({"model": "test-model", "contains": contains, "pieces": pieces, "hold": gate, "after": after})
    return gate


def said(pieces: list[str]) -> str:
    return "".join(pieces).strip()


async def test_an_answer_comes_token_by_token_and_its_source_opens_at_the_passage(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    gate = hold(shared_stack, ANSWER, after=2)
    chat = await open_page(gateway.url)
    job_id = await chat.ask(QUESTION)
    await chat.until_shown(said(ANSWER[:2]))
    await chat.until("running")
    shared_stack.model.release(gate)
    await chat.until("done")
    assert await chat.check_stored(shared_stack) == "".join(ANSWER)

    await chat.turn().locator("summary").click()
    await chat.picture("answer")
    source = chat.turn().locator(".sources button").first
    await source.click()
    (stored,) = await shared_stack.rows("SELECT sources FROM messages WHERE job_id = $1 AND role = 'assistant'", job_id)
    chunk_id = int(re.findall(r'"chunk_id": (\d+)', stored["sources"])[0])
    (chunk,) = await shared_stack.rows("SELECT text FROM chunks WHERE id = $1", chunk_id)
    dialog = chat.page.get_by_role("dialog", name="delivery.md")
    mark = dialog.locator("mark")
    await expect(mark).to_be_in_viewport()
    assert await mark.evaluate("mark => mark.lastChild.data") == chunk["text"]
    await chat.picture("source")
    await chat.page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    await expect(source).to_be_focused()


async def test_a_page_that_is_loaded_again_goes_on_where_it_was(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    gate = hold(shared_stack, ANSWER, after=1)
    chat = await open_page(gateway.url, color_scheme="dark")
    await chat.ask(QUESTION)
    await chat.until_shown(said(ANSWER[:1]))
    await chat.page.reload()
    await chat.until_shown(said(ANSWER[:1]))
    await chat.until("running")
    await chat.picture("reload")
    shared_stack.model.release(gate)
    await chat.until("done")
    assert await chat.check_stored(shared_stack) == "".join(ANSWER)
    first, again = chat.followed
    assert first == ""
    assert re.fullmatch(r"1-\d+", again)  # not from the beginning

    await chat.page.reload()
    await chat.until("done")
    await expect(chat.turns).to_have_count(1)
    await chat.check_stored(shared_stack)
    await expect(chat.turn().locator(".sources button")).not_to_have_count(0)
    assert len(chat.followed) == 2


async def test_a_browser_that_has_forgotten_everything_follows_from_the_beginning(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    gate = hold(shared_stack, ANSWER, after=2)
    chat = await open_page(gateway.url)
    await chat.ask(QUESTION)
    await chat.until_shown(said(ANSWER[:2]))
    await chat.page.evaluate("addEventListener('pagehide', () => { sessionStorage.clear(); localStorage.clear(); })")
    await chat.page.reload()
    await chat.until_shown(said(ANSWER[:2]))
    shared_stack.model.release(gate)
    await chat.until("done")
    await chat.check_stored(shared_stack)
    assert chat.followed == ["", ""]


async def test_a_stopped_answer_keeps_what_was_said(gateway: Gateway, shared_stack: Stack, open_page: Open) -> None:
    hold(shared_stack, ANSWER, after=2)
    chat = await open_page(gateway.url, **PHONE)
    await chat.ask(QUESTION)
    await chat.until_shown(said(ANSWER[:2]))
    await chat.page.get_by_role("button", name="멈추기").click()
    await chat.until("cancelled")
    await expect(chat.turn().get_by_text("멈췄습니다.")).to_be_visible()
    await expect(chat.page.get_by_role("button", name="멈추기")).to_be_hidden()
    kept = await chat.check_stored(shared_stack, status="cancelled")
    assert kept.strip() == said(ANSWER[:2])
    await chat.picture("stop")
    await chat.page.reload()
    await chat.until("cancelled")
    await chat.check_stored(shared_stack, status="cancelled")


async def test_a_worker_killed_in_the_middle_is_told_and_the_answer_starts_again(
    stack: Stack, tmp_path: Path, open_page: Open
) -> None:
    victim = await stack.start_worker()
    hold(stack, ANSWER, after=2)
    other = [ANSWER[0], "이 답은 둘째 워커가 처음부터 다시 했습니다."]
    gate = hold(stack, other, after=0)
    folder = tmp_path / "gateway"
    folder.mkdir()
    with gateway_before(stack.redis_url, stack.database_url, folder) as running:
        chat = await open_page(running.url, color_scheme="dark", **PHONE)
        await chat.ask(QUESTION)
        await chat.until_shown(said(ANSWER[:2]))
        victim.send(signal.SIGKILL)
        await stack.start_worker()
        await chat.until("restart")
        await chat.until_shown("")
        await expect(chat.turn().get_by_text("다른 워커가 처음부터 다시 답합니다")).to_be_visible()
        await chat.picture("killed-worker")
        stack.model.release(gate)
        await chat.until("done")
        assert await chat.check_stored(stack) == "".join(other)
        (row,) = await stack.rows("SELECT attempt FROM messages WHERE role = 'assistant'")
        assert row["attempt"] > 1


async def test_a_gateway_that_is_started_again_is_found_again(
    shared_stack: Stack, shared_places: tuple[str, str, Path], tmp_path: Path, open_page: Open
) -> None:
    redis_url, database_url, _ = shared_places
    gate = hold(shared_stack, ANSWER, after=2)
    with gateway_before(redis_url, database_url, tmp_path) as first:
        chat = await open_page(first.url)
        await chat.ask(QUESTION)
        await chat.until_shown(said(ANSWER[:2]))
        first.process.kill()
        await expect(chat.turn().get_by_text("연결이 끊겼습니다.")).to_be_visible()
    shared_stack.model.release(gate)
    with gateway_before(redis_url, database_url, tmp_path, port=int(first.url.rpartition(":")[2])):
        await chat.until("done")
        assert await chat.check_stored(shared_stack) == "".join(ANSWER)


async def test_two_tabs_of_one_session_show_the_same_and_wait_for_each_other(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    one = await open_page(gateway.url)
    first_gate = hold(shared_stack, ANSWER, after=1, contains="첫째")
    second_gate = hold(shared_stack, ENGLISH, after=1, contains="둘째")
    await one.ask("첫째 질문")
    await one.until_shown(said(ANSWER[:1]))
    two = await open_page(one.page.url, context=one.page.context)
    await two.until_shown(said(ANSWER[:1]))
    await two.ask("둘째 질문")
    await one.until("queued", 1)
    await two.until("queued", 1)
    for gate in (first_gate, second_gate):
        shared_stack.model.release(gate)
    for chat in (one, two):
        await chat.until("done", 1)
        assert await chat.check_stored(shared_stack, 0) == "".join(ANSWER)
        assert await chat.check_stored(shared_stack, 1) == "".join(ENGLISH)


async def test_a_question_is_taken_out_of_the_queue(gateway: Gateway, shared_stack: Stack, open_page: Open) -> None:
    gate = hold(shared_stack, ANSWER, after=1)
    chat = await open_page(gateway.url)
    await chat.ask(QUESTION)
    await chat.until_shown(said(ANSWER[:1]))
    waiting = await chat.ask("이 질문은 그만둡니다")
    await chat.until("queued")
    await chat.turn().get_by_role("button", name="멈추기").click()
    await chat.until("cancelled")
    shared_stack.model.release(gate)
    await chat.until("done", 0)
    await chat.check_stored(shared_stack, 0)
    assert await shared_stack.messages(waiting) == []


INJECTED = """<img src=x onerror="window.injected = 1"> <script>window.injected = 2</script>
**<b onclick="window.injected = 3">굵게</b>** `<i>x</i>` [여기](javascript:window.injected=4)"""


async def test_nothing_that_is_said_becomes_html(stack: Stack, tmp_path: Path, open_page: Open) -> None:
    (stack.corpus / "<img src=x onerror=alert(1)>.md").write_text(
        f"# <b>주입</b>\n\n{INJECTED}\n\n주입 시험 문서이다.\n"
    )
    await stack.start_worker()

    async def indexed() -> bool:
        return len(await stack.rows("SELECT 1 FROM documents WHERE content_hash IS NOT NULL")) == 2

    await until(indexed, "the corpus is indexed", stack.logs)
    question = f"주입 시험 문서 {INJECTED}"
    stack.model.script(
        {"model": "test-model", "contains": "주입", "pieces": [INJECTED, f"\n\n```html\n{INJECTED}\n```"]}
    )
    folder = tmp_path / "gateway"
    folder.mkdir()
    with gateway_before(stack.redis_url, stack.database_url, folder) as running:
        chat = await open_page(running.url)
        await chat.ask(question)
        await chat.until("done")
        await chat.turn().locator("summary").click()
        await chat.turn().locator(".sources button").first.click()
        mark = chat.page.locator("#passage mark")
        await expect(mark).to_contain_text("<script>window.injected = 2</script>")
        found = await chat.page.evaluate(
            "['img', 'script', 'a', 'b', 'i'].filter(name => document.querySelector(`#turns ${name}, dialog ${name}`))"
        )
        assert found == []
        assert await chat.page.evaluate("window.injected") is None
        assert await chat.turn().locator(".question p").inner_text() == question
        await expect(chat.text().locator("pre code")).to_have_text(INJECTED)
        await expect(chat.text().locator("strong")).to_have_text('<b onclick="window.injected = 3">굵게</b>')


# For everybody


async def test_it_is_used_by_keyboard_and_heard_in_sentences(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    shared_stack.model.script({"model": "test-model", "contains": "lease", "pieces": ENGLISH})
    chat = await open_page(gateway.url, locale="en-GB")
    await expect(chat.question).to_be_focused()
    names: list[str] = []
    for _ in range(7):
        await chat.page.keyboard.press("Shift+Tab")
        names.insert(
            0, await chat.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.innerText")
        )
    assert names[:4] == ["Skip to the question", "New chat", "한국어", "Switch between light and dark"]
    assert all(name.endswith("?") for name in names[4:])
    await chat.page.get_by_role("link", name="Skip to the question").press("Enter")
    await expect(chat.page.get_by_role("textbox", name="Your question")).to_be_focused()
    await chat.page.keyboard.type("What is a lease?")
    await chat.page.keyboard.press("Shift+Enter")
    await chat.page.keyboard.type("In short.")
    await chat.page.keyboard.press("Enter")
    await chat.until("done")
    await chat.check_stored(shared_stack)
    heard = chat.page.locator("#spoken[aria-live=polite] p")
    await expect(heard.last).to_have_text("Answer complete.")
    assert (
        " ".join("".join(await heard.all_text_contents()).split())
        == f"{' '.join(''.join(ENGLISH).split())}Answer complete."
    )
    await expect(chat.turn().locator(".answer")).to_have_attribute("aria-busy", "false")


async def test_it_speaks_korean_and_english(gateway: Gateway, shared_stack: Stack, open_page: Open) -> None:
    chat = await open_page(gateway.url)
    html = chat.page.locator("html")
    await expect(html).to_have_attribute("lang", "ko")
    await expect(chat.page.get_by_role("button", name="보내기")).to_be_visible()
    await chat.page.get_by_role("button", name="English").click()
    await expect(html).to_have_attribute("lang", "en")
    await chat.page.reload()
    await expect(chat.page.get_by_role("button", name="Send")).to_be_visible()


async def test_all_text_can_be_read_and_every_control_hit_in_the_dark_and_in_the_light(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    shared_stack.model.script({"model": "test-model", "contains": "임대", "pieces": ["`코드`와 글. ", *ANSWER]})
    chat = await open_page(gateway.url, color_scheme="dark", reduced_motion="reduce", **PHONE)
    assert await chat.page.evaluate(FAINT) == []
    await chat.page.evaluate("document.getElementById('notice').textContent = '오류'")
    await chat.ask("임대란 무엇인가요?")
    await chat.until("done")
    await chat.turn().locator("summary").click()
    assert await chat.page.evaluate(FAINT) == []
    assert await chat.page.evaluate(SMALL) == []
    assert await chat.page.evaluate("document.documentElement.scrollWidth") <= PHONE["viewport"]["width"]  # type: ignore[index]
    ground = "getComputedStyle(document.body).backgroundColor"
    assert await chat.page.evaluate(ground) == "rgb(20, 20, 27)"
    await chat.page.get_by_role("button", name="밝은 화면과 어두운 화면 바꾸기").click()
    assert await chat.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert await chat.page.evaluate(FAINT) == []
    await chat.turn().locator(".sources button").first.click()
    await expect(chat.page.locator("#passage")).to_be_visible()
    assert await chat.page.evaluate(FAINT) == []


SMALL = """() => [...document.querySelectorAll("button, summary, textarea")]
    .filter((element) => element.checkVisibility() && element.getBoundingClientRect().height < 40)
    .map((element) => element.outerHTML)"""

FAINT = """() => {
    const channels = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
    const luminance = (color) => {
        const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = channels(color).map((c) => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        const color = getComputedStyle(element).backgroundColor;
        return channels(color)[3] === 0 ? ground(element.parentElement) : color;
    };
    const contrast = (one, two) => {
        const [dark, light] = [luminance(one), luminance(two)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    };
    const hasText = (element) => [...element.childNodes].some((node) => node instanceof Text && node.data.trim());
    return [...document.querySelectorAll("body *")]
        .filter((element) => element.checkVisibility() && hasText(element))
        .filter((element) => contrast(getComputedStyle(element).color, ground(element)) < 4.5)
        .map((element) => element.outerHTML);
}"""


# In view

SIZES = [
    {"viewport": {"width": 1280, "height": 900}},
    DESKTOP,
    {"viewport": {"width": 700, "height": 420}},
    PHONE,
]
LONG = [f"{number}번째 문장은 화면을 채우려고 길게 쓴 문장이며 여러 줄로 이어진다.\n\n" for number in range(40)]
IS_CLEAR = """() => {
  const answer = document.querySelector("#turns > li:last-child .text").getBoundingClientRect();
  const composer = document.querySelector("footer").getBoundingClientRect();
  return answer.bottom <= composer.top && answer.bottom > 0;
}"""


@pytest.mark.parametrize("size", SIZES, ids=["large", "desktop", "low", "phone"])
async def test_the_newest_text_stays_above_the_composer(
    gateway: Gateway, shared_stack: Stack, open_page: Open, size: dict[str, Any]
) -> None:
    chat = await open_page(gateway.url, **size)
    for pieces in (LONG, ANSWER, LONG):
        question = f"{QUESTION} {uuid4().hex}"
        gate = hold(shared_stack, pieces, after=len(pieces) - 1, contains=question)
        await chat.ask(question)
        await expect(chat.text()).to_contain_text(pieces[-2].strip()[:20])
        await chat.page.wait_for_function(IS_CLEAR)
        shared_stack.model.release(gate)
        await chat.until("done")
        await chat.page.wait_for_function(IS_CLEAR)


async def test_a_person_who_has_scrolled_up_is_left_there(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    chat = await open_page(gateway.url)
    question = f"{QUESTION} {uuid4().hex}"
    gate = hold(shared_stack, LONG, after=30, contains=question)
    await chat.ask(question)
    await expect(chat.text()).to_contain_text("29번째")
    await chat.page.mouse.move(400, 200)
    await chat.page.mouse.wheel(0, -600)
    await chat.page.wait_for_function(
        "() => document.scrollingElement.scrollTop + innerHeight < document.body.scrollHeight - 300"
    )
    top = await chat.page.evaluate("() => document.scrollingElement.scrollTop")
    shared_stack.model.release(gate)
    await chat.until("done")
    assert await chat.page.evaluate("() => document.scrollingElement.scrollTop") == top


async def test_a_proxy_that_goes_silent_costs_nothing_of_the_answer(
    gateway: Gateway, shared_stack: Stack, open_page: Open
) -> None:
    """It keeps the connection and passes nothing on: only the missing signs of life show it."""
    with TcpProxy(int(gateway.url.rpartition(":")[2])) as proxy:
        chat = await open_page(proxy.url)
        question = f"{QUESTION} {uuid4().hex}"
        gate = hold(shared_stack, ANSWER, after=1, contains=question)
        await chat.ask(question)
        await chat.until_shown(said(ANSWER[:1]))
        proxy.go_silent()
        shared_stack.model.release(gate)
        await chat.until("done")
        await chat.check_stored(shared_stack)
        assert len(chat.followed) > 1
