"""What processes cost: CPU time and memory, theirs and their descendants'."""

import os
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PARENT, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 13, 14  # fields of stat behind the name


def cpu_s(root: int) -> float:
    """CPU time that the process, its living descendants and its children that ended have taken."""
    return sum(_clock_s(pid) + _ended_children_s(pid) for pid in _tree(root))


def own_cpu_s(pid: int) -> float:
    """Without descendants."""
    return _clock_s(pid)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def proportional_bytes(pid: int) -> int:
    """Resident memory, where what is shared with other processes counts in part."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("Pss:")]
    return int(kilobytes) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most resident memory since it began, or since `forget_peak`: the kernel's own mark."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kilobytes) * 1024


def descendants(pid: int) -> list[int]:
    return _tree(pid)[1:]


def waited_share(pid: int) -> float:
    """How much of the time in which a process could have run it waited for a core, since it began.
    What is much of it was done by other processes of this machine, ours or not."""
    ran, waited = 0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "schedstat").read_text().split()
        ran += int(fields[0])
        waited += int(fields[1])
    return waited / (ran + waited)


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[_PARENT]), []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _clock_s(pid: int) -> float:
    """By the process's own CPU clock: /proc/<pid>/stat knows hundredths of a second only, which
    over thirty processes of Postgres would be as much as a hundred runs take."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _ended_children_s(pid: int) -> float:
    fields = _stat(pid)
    if not fields:
        return 0.0
    return (int(fields[_CHILDREN_USER]) + int(fields[_CHILDREN_SYSTEM])) / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
