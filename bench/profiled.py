"""`threadmill` under cProfile: `python -m bench.profiled FILE serve`.

The first SIGUSR1 begins, the second one writes FILE, so that neither start nor stop is in it.
"""

import cProfile
import signal
import sys
from types import FrameType

from threadmill.cli import main


def run(path: str) -> None:
    profile = cProfile.Profile()
    is_on = False

    def toggle(number: int, frame: FrameType | None) -> None:
        nonlocal is_on
        is_on = not is_on
        if is_on:
            profile.enable()
        else:
            profile.disable()
            profile.dump_stats(path)

    signal.signal(signal.SIGUSR1, toggle)
    main()


if __name__ == "__main__":
    path = sys.argv.pop(1)
    run(path)
