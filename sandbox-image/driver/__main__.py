"""`python -s -m driver`: take the host's descriptors away from everybody else, load what code will
want, and serve."""

import gc
import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .folder import Folder
from .loop import Driver
from .shell import live, make_shell
from .worker import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, above, libc, prctl

HEAVY = ("numpy", "pandas", "matplotlib.pyplot")
BAKED_MATPLOTLIB = Path("/opt/matplotlib")


def main() -> None:
    requests, answers = take_descriptors()
    # Nobody with our user id may look into this process or at its descriptors.
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    # The kernel keeps signals from PID 1 that it has no handler for; Python's would be one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    folder = Folder(os.environ.get("SANDBOX_DATA", "/mnt/data"))
    load_packages()
    Driver(requests, answers, folder, live_in(folder)).run()


def take_descriptors() -> tuple[int, int]:
    """Stray prints go where the errors go."""
    requests, answers = above(0), above(1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    os.set_blocking(requests, False)
    return requests, answers


def load_packages() -> None:
    """What is loaded before the fork costs a cell nothing, and its memory is shared."""
    # Threads do not survive a fork; and there is hardly more than one processor.
    for pool in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(pool, "1")
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    if BAKED_MATPLOTLIB.is_dir() and "MPLCONFIGDIR" in os.environ:
        with suppress(OSError):
            shutil.copytree(BAKED_MATPLOTLIB, os.environ["MPLCONFIGDIR"], dirs_exist_ok=True)
    # Where somebody waits for this very container, its code loads what it wants, and no more.
    is_awaited = os.environ.pop("SANDBOX_AWAITED", "") == "1"
    for name in () if is_awaited else HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    make_shell(loads_matplotlib=not is_awaited)
    gc.collect()
    libc.malloc_trim(0)
    gc.freeze()


def live_in(folder: Folder) -> Callable[[int, int, int], NoReturn]:
    def start(channel: int, stdout: int, stderr: int) -> NoReturn:
        with suppress(OSError):
            os.chdir(folder.path)
        # The code's own modules, and none of ours.
        sys.path[0] = ""
        for name in [name for name in sys.modules if name.split(".")[0] == __package__]:
            del sys.modules[name]
        live(channel, stdout, stderr)

    return start


if __name__ == "__main__":
    main()
