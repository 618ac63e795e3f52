"""The times of a run as a model of middling speed would have had them.

The demo's runs take milliseconds, and all of them took place just now. Here they are told again, at
another time and at another pace; what happened in them stays.
"""

import copy
import random
from typing import Any

from threadmill.store.backdate import Turned

Json = dict[str, Any]

_TOKENS_A_SECOND = 70.0
_TAKES_S = {"file_search": (0.02, 0.06), "code_interpreter": (0.9, 2.6)}
_CLIENT_TAKES_S = (0.2, 1.1)


def told_again(
    records: list[tuple[int, Json]], kinds: dict[str, str], starts_at: float, chance: random.Random
) -> tuple[list[Turned], float]:
    """The turns, and when the run is over; `kinds` are the names of the calls by their ids."""
    now, turned = starts_at, []
    for number, before in records:
        record = copy.deepcopy(before)
        began_at = now
        record["queued_at"] = now
        now += chance.uniform(0.004, 0.03)
        record["claimed_at"] = now
        record["prompt_s"] = chance.uniform(0.002, 0.02)
        now += record["prompt_s"]
        for one in record["tries"]:
            one["started_at"] = record["sent_at"] = now
            now += chance.uniform(0.1, 0.4)
            if one.get("waited_s"):
                one["waited_s"] = round(chance.uniform(0.5, 2.5), 2)
                now += one["waited_s"]
        if record["first_chunk_at"] is not None:
            record["headers_at"] = now
            now += chance.uniform(0.15, 0.7)
            record["first_chunk_at"] = now
            tokens = (record["usage"] or {}).get("completion_tokens", 40)
            now += tokens / (_TOKENS_A_SECOND * chance.uniform(0.6, 1.4))
        record["ended_at"] = now
        for tool in record.get("tools") or []:
            tool["started_at"] = now
            now += chance.uniform(*_TAKES_S.get(kinds.get(tool["call_id"], ""), (0.1, 0.3)))
            tool["ended_at"] = now
            if tool.get("ready_at"):
                tool["ready_at"] = tool["started_at"] + 0.02
        if record.get("answered_at"):
            now += chance.uniform(*_CLIENT_TAKES_S)
            record["answered_at"] = now
        turned.append(Turned(number, began_at, now, record))
    return turned, now
