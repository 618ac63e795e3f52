"""Every status and every allowed move. No I/O."""

from enum import StrEnum


class RunStatus(StrEnum):
    QUEUED = "queued"  # waits for an executor
    IN_PROGRESS = "in_progress"  # an executor holds it
    REQUIRES_ACTION = "requires_action"  # waits for the client's tool outputs; nobody holds it
    CANCELLING = "cancelling"  # the client asked; an executor has not closed it yet
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"  # a token budget ran out, or a content filter stepped in
    EXPIRED = "expired"  # `expires_at` passed


class StepStatus(StrEnum):
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class MessageStatus(StrEnum):
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"


class FileStatus(StrEnum):
    """Of a file in a vector store."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"  # by the batch it came with


class DeliveryStatus(StrEnum):
    """Of an event on its way to a webhook endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # all tries did, or the endpoint was disabled


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset(
        {RunStatus.IN_PROGRESS, RunStatus.CANCELLING, RunStatus.EXPIRED, RunStatus.FAILED}
    ),
    RunStatus.IN_PROGRESS: frozenset(
        {
            RunStatus.COMPLETED,
            RunStatus.INCOMPLETE,
            RunStatus.FAILED,
            RunStatus.REQUIRES_ACTION,
            RunStatus.CANCELLING,
            RunStatus.EXPIRED,
        }
    ),
    RunStatus.REQUIRES_ACTION: frozenset(
        {RunStatus.QUEUED, RunStatus.IN_PROGRESS, RunStatus.CANCELLING, RunStatus.EXPIRED}
    ),
    RunStatus.CANCELLING: frozenset({RunStatus.CANCELLED, RunStatus.FAILED, RunStatus.EXPIRED}),
    RunStatus.CANCELLED: frozenset(),
    RunStatus.FAILED: frozenset(),
    RunStatus.COMPLETED: frozenset(),
    RunStatus.INCOMPLETE: frozenset(),
    RunStatus.EXPIRED: frozenset(),
}
ENDED = frozenset(status for status, onward in MOVES.items() if not onward)
ACTIVE = frozenset(MOVES) - ENDED  # a thread has at most one run in these


def sources(to: RunStatus) -> list[str]:
    """The statuses from which a run may move to `to`."""
    return [status.value for status, onward in MOVES.items() if to in onward]
