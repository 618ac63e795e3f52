"""The way of events into the event log: gathered from all runs of the process, written together.

Most runs are listened to where they are executed, or by nobody. What they say is written once a
second. A run that somebody follows from elsewhere is written every 30 ms, for as long as the
followers go on saying that they are there.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from threadmill.settings import Settings
from threadmill.store import notify, run_events
from threadmill.store.database import Connection, Database, connect

log = structlog.get_logger()

EVENTS = "events"  # hint: these runs have said something
FOLLOW = "follow"  # hint: somebody follows these runs
HINT_MAX_RUNS = 100  # in one hint, which takes 8,000 bytes

_SOON_S = 0.03
_LATER_S = 1.0
_FOLLOWED_FOR_S = 30.0  # after the last word of a follower
_ROW_MAX_BYTES = 256 * 1024
_STATEMENT_MAX_BYTES = 4 * 1024**2
_HELD_MAX_BYTES = 128 * 1024**2  # of all runs together, while the database is away
_SWEEP_EVERY_S = 60.0
_SWEEP_AT_ONCE = 1000


class EventLog:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._kept_s = settings.event_log_retention_s
        self._run_max_bytes = settings.event_log_run_max_bytes
        self._records: dict[str, Record] = {}
        self._soon: list[Record] = []
        self._later: list[Record] = []
        self._timers: dict[float, asyncio.TimerHandle] = {}
        self._unwritten: deque[tuple[run_events.Row, Record]] = deque()
        self._is_due = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.held_bytes = 0

    def record(self, run_id: str, settle: Callable[[], None]) -> "Record":
        """`settle` is called before the record is written, for what is said but not yet put."""
        record = self._records[run_id] = Record(self, run_id, settle)
        return record

    def watch(self, run_id: str) -> bool:
        """Somebody follows the run: write at once what it says. False if it is not here."""
        record = self._records.get(run_id)
        if record is None:
            return False
        record.watch()
        return True

    # --- services: each runs until it is cancelled ---

    async def write(self) -> None:
        async with connect(self._database.url) as connection:
            await connection.execute("SET synchronous_commit = off")
            while True:
                await self._write_all(connection)  # first of all, what a lost connection has left
                if not (self._soon or self._later):
                    self._is_idle.set()
                await self._is_due.wait()
                self._is_due.clear()
                self._take()

    async def sweep(self) -> None:
        """Forget what ended long ago."""
        while True:
            async with self._database.connection() as connection:
                while (
                    await run_events.forget_old(connection, self._kept_s, _SWEEP_AT_ONCE)
                    == _SWEEP_AT_ONCE
                ):
                    pass
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def write_rest(self, patience_s: float) -> None:
        """This process stops: write what there is."""
        self._soon += self._later
        self._later.clear()
        if self._soon:
            self._is_idle.clear()
            self._is_due.set()
        try:
            async with asyncio.timeout(patience_s):
                await self._is_idle.wait()
        except TimeoutError:
            log.warning("events_not_written", bytes=self.held_bytes)

    # --- for records ---

    def wait(self, record: "Record", *, is_urgent: bool) -> None:
        """Write the record's events soon, or with the next ones that are not urgent."""
        (self._soon if is_urgent else self._later).append(record)
        self._is_idle.clear()
        delay_s = _SOON_S if is_urgent else _LATER_S
        if delay_s not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[delay_s] = loop.call_later(delay_s, self._on_timer, delay_s)

    def hold(self, size_bytes: int) -> bool:
        """Whether there is room for so much more."""
        if self.held_bytes + size_bytes <= _HELD_MAX_BYTES:
            self.held_bytes += size_bytes
            return True
        log.warning("events_dropped", held_bytes=self.held_bytes)
        return False

    # --- what they share ---

    def _on_timer(self, delay_s: float) -> None:
        del self._timers[delay_s]
        if delay_s == _LATER_S:
            self._soon += self._later
            self._later.clear()
        self._is_due.set()

    def _take(self) -> None:
        due, self._soon = self._soon, []
        for record in due:
            self._unwritten += [(row, record) for row in record.take()]
            if record.is_closed and self._records.get(record.run_id) is record:
                del self._records[record.run_id]

    async def _write_all(self, connection: Connection) -> None:
        while self._unwritten:
            some, size_bytes = [], 0
            for row, record in self._unwritten:
                some.append((row, record))
                size_bytes += len(row.frames)
                if size_bytes > _STATEMENT_MAX_BYTES:
                    break
            await run_events.append(connection, [row for row, _ in some])
            for _ in some:
                self._unwritten.popleft()
            self.held_bytes -= size_bytes
            await self._tell(connection, some)

    async def _tell(
        self, connection: Connection, written: list[tuple[run_events.Row, "Record"]]
    ) -> None:
        followed = []
        for row, record in written:
            if record.is_followed:
                followed.append(row.run_id)
            if up_to := record.too_old(row, self._run_max_bytes):
                await run_events.trim(connection, row.run_id, up_to)
        # A statement of its own: within one that writes it would make all who commit wait.
        for at in range(0, len(followed), HINT_MAX_RUNS):
            await notify.hint(
                connection, f"{EVENTS}:" + ",".join(followed[at : at + HINT_MAX_RUNS])
            )


class Record:
    """What one run says under one claim, on its way into the log."""

    def __init__(self, log: EventLog, run_id: str, settle: Callable[[], None]) -> None:
        self.run_id = run_id
        self.is_closed = False
        self._log = log
        self._settle = settle
        self._rows: list[run_events.Row] = []  # full ones
        self._frames: list[bytes] = []  # of the next row
        self._first_seq = self._last_seq = 0
        self._size_bytes = 0
        self._is_waiting = self._is_urgent = False
        self._followed_until = 0.0
        self._mark = 0  # everything up to here may go when the next half of the limit is full
        self._since_mark_bytes = 0

    @property
    def is_followed(self) -> bool:
        return self._followed_until > 0 and self._followed_until > _now()

    def watch(self, for_s: float = _FOLLOWED_FOR_S) -> None:
        self._followed_until = max(self._followed_until, _now() + for_s)
        if self._is_waiting:
            self._wait()

    def add(self, frames: bytes, first_seq: int, last_seq: int) -> None:
        size_bytes = len(frames)
        if not self._log.hold(size_bytes):
            # Whoever follows will see by the numbers that something is missing.
            self._clear()
            return
        if not self._frames:
            self._first_seq = first_seq
        self._frames.append(frames)
        self._last_seq = last_seq
        self._size_bytes += size_bytes
        if self._size_bytes > _ROW_MAX_BYTES:
            self._end_row()
            self._wait()
        elif not self._is_waiting:
            self._wait()

    def touch(self) -> None:
        """There is something to write."""
        if not self._is_waiting:
            self._wait()

    def close(self) -> None:
        """Nothing more comes."""
        if not self.is_closed:
            self.is_closed = True
            self._wait()

    def take(self) -> list[run_events.Row]:
        """What there is to write, usually one row."""
        self._settle()
        self._is_waiting = self._is_urgent = False
        self._end_row()
        rows, self._rows = self._rows, []
        return rows

    def too_old(self, row: run_events.Row, limit_bytes: int) -> int:
        """The row is written: up to which number events must go, so that the run does not keep
        more than the limit; 0 if none must."""
        self._since_mark_bytes += len(row.frames)
        if self._since_mark_bytes < limit_bytes / 2:
            return 0
        up_to, self._mark = self._mark, row.last_seq
        self._since_mark_bytes = 0
        return up_to

    def _wait(self) -> None:
        is_urgent = self.is_closed or self.is_followed or bool(self._rows)
        if not self._is_waiting or (is_urgent and not self._is_urgent):
            self._is_waiting, self._is_urgent = True, is_urgent
            self._log.wait(self, is_urgent=is_urgent)

    def _end_row(self) -> None:
        if self._frames:
            frames = b"".join(self._frames)
            self._frames.clear()
            self._size_bytes = 0
            row = (self.run_id, self._first_seq, self._last_seq, frames.endswith(_END), frames)
            self._rows.append(run_events.Row(*row))

    def _clear(self) -> None:
        self._end_row()
        self._log.held_bytes -= sum(len(row.frames) for row in self._rows)
        self._rows.clear()


_END = b"data: [DONE]\n\n"


def _now() -> float:
    return asyncio.get_running_loop().time()
