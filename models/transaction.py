"""Runs transactions: with retries, each attempt in an asyncio task of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg
from tortoise.backends.base.client import BaseDBAsyncClient, TransactionContext
from tortoise.exceptions import DBConnectionError, OperationalError, TransactionManagementError
from tortoise.transactions import in_transaction

T = TypeVar("T")

RETRY_FOR_S: Final = 60.0
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0
_LONGEST_PAUSE: Final = "SELECT set_config('idle_in_transaction_session_timeout', $1, true)"

_TRANSIENT: Final = (
    OSError,
    TimeoutError,
    DBConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, crash, start-up, cancelled query
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.PostgresSystemError,  # I/O errors
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


def is_transient(error: BaseException) -> bool:
    """Whether PostgreSQL may run the same statement later: it is away, restarting, contended, read-only or full."""
    return _is_one_of(error, _TRANSIENT)


def _is_one_of(error: BaseException, types: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an error is of a type, by itself or inside the error that Tortoise makes of it."""
    is_wrapped = isinstance(error, OperationalError | TransactionManagementError)
    return isinstance(error, types) or (is_wrapped and any(isinstance(arg, types) for arg in error.args))


async def transact(
    work: Callable[[BaseDBAsyncClient], Awaitable[T]],
    *,
    retry_for_s: float = RETRY_FOR_S,
    longest_pause_s: float | None = None,
) -> T:
    """Run `work` in a transaction and commit it, again after a transient fault for up to `retry_for_s`.

    `work` must be idempotent: a commit can succeed unacknowledged and `work` then runs again. PostgreSQL breaks
    the transaction off where more than `longest_pause_s` pass between two statements, so that what a frozen
    process has locked is free again.

    Raises:
        whatever `work` raises, at once unless it is transient (`is_transient`).
    """

    async def attempt() -> T:
        transaction = in_transaction()
        try:
            connection = await transaction.__aenter__()
        except BaseException:
            _discard_connection(transaction)
            raise
        try:
            if longest_pause_s is not None:
                await connection.execute_query(_LONGEST_PAUSE, [f"{int(longest_pause_s * 1000)}ms"])
            result = await work(connection)
        except BaseException as error:
            kind = type(error)
            if _is_one_of(error, asyncpg.ReadOnlySQLTransactionError):
                # The server may have been demoted, so the next attempt needs a new connection.
                _discard_connection(transaction)
                kind = TransactionManagementError  # for which Tortoise sends no rollback
            await transaction.__aexit__(kind, error, error.__traceback__)
            raise
        await transaction.__aexit__(None, None, None)
        return result

    deadline = asyncio.get_running_loop().time() + retry_for_s
    delay_s = _FIRST_DELAY_S
    while True:
        try:
            # A BEGIN that times out leaves its asyncio task in a transaction that never commits,
            # so no two attempts share a task.
            return await asyncio.create_task(attempt())
        except Exception as error:
            if not is_transient(error) or asyncio.get_running_loop().time() + delay_s > deadline:
                _forget_row(error)
                raise
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
        delay_s = min(delay_s * 2, _LONGEST_DELAY_S)


def _forget_row(error: BaseException | None) -> None:
    """Remove the quoted row from a PostgreSQL error: logs print it, and a row may be a user's message."""
    while error is not None:
        if isinstance(error, asyncpg.PostgresError):
            error.detail = None
        error = error.__cause__ or error.__context__


def _discard_connection(transaction: TransactionContext) -> None:
    """Close the connection of a transaction: one whose BEGIN failed is never given back to the pool by Tortoise."""
    connection = getattr(getattr(transaction, "client", None), "_connection", None)
    if connection is not None and not connection.is_closed():
        connection.terminate()
