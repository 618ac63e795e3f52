"""What happened to a run, in the order in which it did."""

from typing import Any

import msgspec

from threadmill.store.rows import Run, Step, Turn

Json = dict[str, Any]


class Happening(msgspec.Struct, frozen=True):
    at: float
    what: str
    where: str = ""  # the process, or the endpoint


def tell(run: Run, turns: list[Turn], steps: list[Step]) -> list[Happening]:
    """As far as it was recorded: of what goes on there is no end yet."""
    tools = {
        call_id: call["name"] for step in steps for call_id, call in (step.given or {}).items()
    }
    told = [] if turns else [Happening(run.queued_at, "queued")]
    for turn in turns:
        told += _of_turn(turn, tools)
    for at, what in (
        (run.completed_at, run.status),
        (run.failed_at, "failed"),
        (run.cancelled_at, "cancelled"),
        (run.expires_at if run.status == "expired" else None, "expired"),
    ):
        if at is not None:
            # Ends are stored in whole seconds, rounded down.
            told.append(Happening(max([at, *(one.at for one in told)]), what))
    # What several turns have in common, such as the queue before the first of them, is told once.
    return sorted(dict.fromkeys(told), key=lambda one: one.at)


def _of_turn(turn: Turn, tools: dict[str, str]) -> list[Happening]:
    record, number = turn.record, f"turn {turn.turn}"
    worker = record.get("worker") or ""
    told = [
        Happening(record["queued_at"], "queued"),
        Happening(record["claimed_at"], "in progress", worker),
    ]
    for one in record.get("tries") or []:
        told.append(
            Happening(one["started_at"], f"{number}: asked {one['model']}", one["base_url"])
        )
    if first := record["first_chunk_at"]:
        told.append(Happening(first, f"{number}: the first token came"))
    if ended := record["ended_at"]:
        reason = record["finish_reason"] or "broken off"
        told.append(Happening(ended, f"{number}: the model ended ({reason})"))
    for tool in record.get("tools") or []:
        name = tools.get(tool["call_id"], tool["call_id"])
        told.append(Happening(tool["started_at"], f"{number}: {name} began", worker))
        told.append(Happening(tool["ended_at"], f"{number}: {name} ended", worker))
    if answered := record.get("answered_at"):
        told.append(Happening(answered, "the client's outputs came"))
    return [one for one in told if one.at is not None]
