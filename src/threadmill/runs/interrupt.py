"""Stopping an execution from outside: only while it waits for a model, a tool or a pause.

What it writes to the database is never cut in the middle; the conditions in the statements decide
who was first.
"""

import asyncio
from enum import StrEnum


class Reason(StrEnum):
    CANCEL = "cancel"  # the client asked
    EXPIRE = "expire"  # `expires_at` has passed
    HAND_BACK = "hand_back"  # this process stops; another one goes on
    LOST = "lost"  # another executor has it, or the thread was deleted


class Interrupted(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Interrupt:
    def __init__(self) -> None:
        self.reason: Reason | None = None
        self._waiting: asyncio.Task[object] | None = None

    def fire(self, reason: Reason) -> None:
        """Interrupt the execution now, or when it next begins to wait. The first reason stays."""
        if self.reason is None:
            self.reason = reason
            if self._waiting is not None:
                self._waiting.cancel()

    def may_strike(self) -> "_MayStrike":
        """A block that raises Interrupted where it waits, once `fire` was called."""
        return _MayStrike(self)


class _MayStrike:
    """Not a generator with `contextmanager`: it is entered for every read of every stream."""

    __slots__ = ("_cancelled_before", "_interrupt")

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def __enter__(self) -> None:
        if self._interrupt.reason is not None:
            raise Interrupted(self._interrupt.reason)
        task = asyncio.current_task()
        assert task is not None
        self._cancelled_before = task.cancelling()
        self._interrupt._waiting = task

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, reason = self._interrupt._waiting, self._interrupt.reason
        assert task is not None
        self._interrupt._waiting = None
        if reason is None:
            return
        # Struck: in its wait, or in the very moment in which that was over.
        was_cancelled_otherwise = task.uncancel() > self._cancelled_before
        if kind in (None, asyncio.CancelledError) and not was_cancelled_otherwise:
            raise Interrupted(reason) from None
