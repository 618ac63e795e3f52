"""The process that runs the code, seen from PID 1: forked, spoken to, stopped."""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .wire import Outlet

# Where the code has no reason to close or open anything, and below every limit.
FIRST_OWN_DESCRIPTOR = 200

PIPE_BYTES = 256 * 1024  # room for what is written between two looks

DYING_MAX_S = 5.0
ENDING_MAX_S = 0.1
PATIENCE_S = 0.001

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

# cgroup v2, then v1; both have a line "oom_kill <how many>".
OUT_OF_MEMORY_COUNTS = (
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
)

libc = ctypes.CDLL(None)
prctl = libc.prctl
leave = os._exit  # the code may put something else in its place


class Worker:
    """What `live` does in the child, with its channel and the write ends of stdout and stderr."""

    def __init__(self, live: Callable[[int, int, int], NoReturn]) -> None:
        mine, theirs = socket.socketpair()
        stdout, stdout_theirs = os.pipe()
        stderr, stderr_theirs = os.pipe()
        try:
            parent = os.getpid()
            self.pid = os.fork()
            if self.pid == 0:
                become_worker(parent, live, theirs.detach(), stdout_theirs, stderr_theirs)
        except OSError:
            mine.close()
            close_all((stdout, stderr))
            raise
        finally:
            theirs.close()
            close_all((stdout_theirs, stderr_theirs))
        self.channel = mine.detach()
        self.outlet = Outlet(self.channel)
        self.arrived = bytearray()
        self.pipes = {stdout: "stdout", stderr: "stderr"}
        for pipe in self.pipes:
            os.set_blocking(pipe, False)
            with suppress(OSError):  # the user has too many pipes already: it is slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def interrupt(self) -> None:
        """Everything in its group, so that a command it waits for ends as well; and awake, for a
        stopped process would hear nothing."""
        for number in (signal.SIGINT, signal.SIGCONT):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def ending(self) -> int | None:
        """How it ended, if it does within a moment: its channel may close a little before."""
        give_up_at = time.monotonic() + ENDING_MAX_S
        while time.monotonic() < give_up_at:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return status
            time.sleep(PATIENCE_S)
        return None

    def close(self) -> None:
        close_all((self.channel, *self.pipes))


def become_worker(
    parent: int, live: Callable[[int, int, int], NoReturn], channel: int, stdout: int, stderr: int
) -> NoReturn:
    """Nothing of PID 1's stays open in here, and when memory runs out, this goes first."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            leave(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, source in enumerate((nothing, stdout, stderr)):
            os.dup2(source, number)
        own = [above(descriptor) for descriptor in (channel, stdout, stderr)]
        close_all_but(own)
        # Only now, with nothing of PID 1's in reach: others may look into this process.
        prctl(PR_SET_DUMPABLE, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        live(*own)
    finally:
        leave(1)


def above(descriptor: int) -> int:
    """The same, with a high number, and not for programs that are started from here."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_DESCRIPTOR)


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def close_all_but(kept: list[int]) -> None:
    after = 3
    for descriptor in sorted(kept):
        os.closerange(after, descriptor)
        after = descriptor + 1
    os.closerange(after, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def kill_everyone() -> None:
    """Every process but this one, until none is left: all of them are our children, or become so
    when their parents die."""
    give_up_at = time.monotonic() + DYING_MAX_S
    while time.monotonic() < give_up_at:
        try:
            kill_others()
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(PATIENCE_S)


def kill_others() -> None:
    if os.getpid() == 1:
        # In one step of the kernel: nobody can fork away from it.
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        return
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def out_of_memory_kills() -> int:
    """How many processes of this container the kernel has killed to get their memory."""
    for counts in OUT_OF_MEMORY_COUNTS:
        with suppress(OSError, ValueError):
            for line in counts.read_text().splitlines():
                key, value = line.split()
                if key == "oom_kill":
                    return int(value)
    return 0


def cause_of_death(status: int, out_of_memory: bool) -> str:
    if not os.WIFSIGNALED(status):
        return f"The Python process exited with code {os.waitstatus_to_exitcode(status)}."
    if out_of_memory and os.WTERMSIG(status) == signal.SIGKILL:
        return "The Python process ran out of memory."
    number = os.WTERMSIG(status)
    name = signal.strsignal(number)
    with suppress(ValueError):
        name = signal.Signals(number).name
    return f"The Python process was killed by {name}."
