"""The numbers of a run's events.

They rise through the run's whole life, without anybody having to look what the last one was: each
claim has a thousand million of its own, and one executor writes under a claim. Within a claim they
have no gaps. Between two there always is one, and nothing is missing there: what the first executor
said and could not write before it died, the second does not go on from.

    0, 1, 2           under every claim, the opening: said by whoever asks for the claim
                      (thread.created if the thread was made too, run.created, run.queued; or after
                      tool outputs run.step.completed, run.queued)
    3, 4, ...         said by the executor
    ... 999,999,999   an end that the executor had written down but could not tell any more
"""

_OF_A_CLAIM = 1_000_000_000
_OPENING = 3
_LATE_FROM = 999_000_000


def base(claims: int) -> int:
    """What the numbers under the run's `claims`-th claim begin with."""
    return (claims - 1) * _OF_A_CLAIM


def first_said(claims: int) -> int:
    return base(claims) + _OPENING


def late_end(claims: int) -> int:
    """The last number under the claim."""
    return base(claims + 1) - 1


def is_opening(seq: int) -> bool:
    return seq % _OF_A_CLAIM < _OPENING


def is_first_said(seq: int) -> bool:
    return seq % _OF_A_CLAIM == _OPENING


def is_missing(after: int, first: int) -> bool:
    """Whether there must have been events between the two."""
    if first == after + 1 or first % _OF_A_CLAIM >= _LATE_FROM:
        return False
    is_same_claim = first // _OF_A_CLAIM == after // _OF_A_CLAIM
    return is_same_claim or first % _OF_A_CLAIM > _OPENING
