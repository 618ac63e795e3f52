"""`threadmill` under a sampling profiler: `python -m bench.profiled FILE serve`.

Sampled by the CPU time that the process takes (250 times a second where the kernel's clock ticks so
often): cProfile measures by the wall clock, which on a busy machine shows whom the scheduler
interrupted, and slows down what makes many small calls.

The first SIGUSR1 begins, the second one writes FILE, so that neither start nor stop is in it. FILE
holds a line for each stack that was seen, outermost function first, with the number of samples: the
form that flame graph viewers read.
"""

import signal
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from threadmill.cli import main

_EVERY_S = 0.001
_SHOWN_FUNCTIONS = 30


class Sampler:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._stacks: Counter[tuple[CodeType, ...]] = Counter()
        self._is_on = False

    def install(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.signal(signal.SIGUSR1, self._toggle)

    def _sample(self, number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self._stacks[tuple(reversed(stack))] += 1

    def _toggle(self, number: int, frame: FrameType | None) -> None:
        self._is_on = not self._is_on
        every_s = _EVERY_S if self._is_on else 0
        signal.setitimer(signal.ITIMER_PROF, every_s, every_s)
        if not self._is_on:
            self._path.write_text("".join(map(_line, self._stacks.items())))


def read(path: Path) -> tuple[Counter[str], Counter[str], int]:
    """By function: samples in it, samples in it and in what it calls; and how many there were."""
    own: Counter[str] = Counter()
    with_called: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        functions = stack.split(";")
        own[functions[-1]] += int(samples)
        for function in set(functions):
            with_called[function] += int(samples)
    return own, with_called, own.total()


def show(path: Path) -> None:
    own, with_called, samples = read(path)
    for title, found in (("in it", own), ("in it and in what it calls", with_called)):
        print(f"\n% of {samples} samples {title}")
        for function, count in found.most_common(_SHOWN_FUNCTIONS):
            print(f"{100 * count / samples:6.1f}  {function}")


def _line(stack: tuple[tuple[CodeType, ...], int]) -> str:
    codes, samples = stack
    return f"{';'.join(map(_name, codes))} {samples}\n"


def _name(code: CodeType) -> str:
    place = "/".join(Path(code.co_filename).parts[-2:])
    return f"{place}:{code.co_firstlineno}:{code.co_qualname}"


if __name__ == "__main__":
    Sampler(Path(sys.argv.pop(1))).install()
    main()
