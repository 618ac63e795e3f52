"""Stopping an execution from outside: only while it waits for a model, a tool or a pause.

What it writes to the database is never cut in the middle; the conditions in the statements decide
who was first.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def may_strike(self) -> Iterator[None]:
        """Raises Interrupted where the block waits, once `fire` was called."""
        if self.reason is not None:
            raise Interrupted(self.reason)
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        self._waiting = task
        try:
            yield
        except asyncio.CancelledError:
            if self.reason is None or task.uncancel() > cancelled_before:
                raise  # the task itself was cancelled
            raise Interrupted(self.reason) from None
        finally:
            self._waiting = None
        if self.reason is not None:  # struck in the very moment in which the block was done
            task.uncancel()
            raise Interrupted(self.reason)
