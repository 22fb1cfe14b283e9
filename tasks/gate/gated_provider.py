"""A provider behind the gate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from rag.providers import Completion, CompletionRequest, Finish, Provider, ProviderError, StreamPart
from tasks.gate.gate import Gate, Ticket
from tasks.monitoring.traces import request_span


class GatedProvider:
    """A `Provider` whose methods raise `ProviderBusyError` while the model may not be asked.

    Args:
        provider: receives the requests.
        gate: permits each request and records its outcome.
        ticket: the permission of the first request to its model; further requests ask the gate.
    """

    def __init__(self, provider: Provider, gate: Gate, ticket: Ticket | None = None) -> None:
        self.name = provider.name
        self._provider = provider
        self._gate = gate
        self._ticket = ticket

    async def look(self, models: Sequence[str]) -> None:
        """Check whether one of the models may be asked, before a prompt is made.

        Raises:
            ProviderBusyError: none of them may be asked.
        """
        await self._gate.look(models)

    @asynccontextmanager
    async def admitted(self, models: Sequence[str], *, tokens: int) -> AsyncIterator[GatedProvider]:
        """Let a job pass, with a request of so many tokens, to the first of the models that may be asked.

        Raises:
            ProviderBusyError: none of them may be asked; nothing was sent.
        """
        ticket = await self._gate.enter(models, tokens=tokens)
        try:
            yield GatedProvider(self._provider, self._gate, ticket)
        finally:
            await ticket.give_up()

    @asynccontextmanager
    async def stream(self, request: CompletionRequest) -> AsyncIterator[AsyncIterator[StreamPart]]:
        """As `Provider.stream`."""
        async with (
            self._entered(request.model, request.most_tokens) as ticket,
            self._provider.stream(request) as parts,
            aclosing(_watched(parts, ticket)) as watched,
        ):
            yield watched

    async def complete(self, request: CompletionRequest) -> Completion:
        """As `Provider.complete`."""
        async with self._entered(request.model, request.most_tokens) as ticket:
            completion = await self._provider.complete(request)
            await ticket.answered()
        return completion

    async def embed(self, texts: Sequence[str], *, model: str) -> list[list[float]]:
        """As `Provider.embed`; its tokens are not counted."""
        async with self._entered(model, 0) as ticket:
            vectors = await self._provider.embed(texts, model=model)
            await ticket.answered()
        return vectors

    async def close(self) -> None:
        """As `Provider.close`."""
        await self._provider.close()

    @asynccontextmanager
    async def _entered(self, model: str, tokens: int) -> AsyncIterator[Ticket]:
        ticket = self._ticket
        if ticket is not None and ticket.model == model:
            self._ticket = None
        else:
            ticket = await self._gate.enter([model], tokens=tokens)
        try:
            with request_span(model):
                yield ticket
        except ProviderError as error:
            raise await ticket.failed(error) from None
        finally:
            await ticket.give_up()


async def _watched(parts: AsyncIterator[StreamPart], ticket: Ticket) -> AsyncGenerator[StreamPart, None]:
    """Pass the parts on, and report the state of the provider to the gate.

    A reader that stops at an error closes the stream without that error, so the error is recorded here.
    """
    try:
        async for part in parts:
            if isinstance(part, Finish):
                await ticket.answered()
            elif ticket.token:
                await ticket.began()
            yield part
    except ProviderError as error:
        raise await ticket.failed(error) from None
