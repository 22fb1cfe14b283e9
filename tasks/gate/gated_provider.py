"""A provider behind the gate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from rag.providers import Completion, CompletionRequest, Finish, Provider, ProviderError, StreamPart
from tasks.gate.gate import Gate, Ticket
from tasks.monitoring.traces import request_span


class GatedProvider:
    """A `Provider` whose methods raise `ProviderBusyError` where the model is not to be asked.

    Args:
        provider: who is asked.
        gate: what is asked before, and told after.
        ticket: what the first request to its model comes in with; further ones ask the gate.
    """

    def __init__(self, provider: Provider, gate: Gate, ticket: Ticket | None = None) -> None:
        self.name = provider.name
        self._provider = provider
        self._gate = gate
        self._ticket = ticket

    async def look(self, models: Sequence[str]) -> None:
        """See whether one of the models may be asked, before work is put into a prompt.

        Raises:
            ProviderBusyError: none of them may.
        """
        await self._gate.look(models)

    @asynccontextmanager
    async def admitted(self, models: Sequence[str], *, tokens: int) -> AsyncIterator[GatedProvider]:
        """Let a job through, with a request of so many tokens, to the first of the models that may be asked.

        Raises:
            ProviderBusyError: none of them may; nothing was sent.
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
    """The parts, with what they say of the provider told to the gate.

    A reader that stops at an error closes the stream without it, so that it is taken down here.
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
