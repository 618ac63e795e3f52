"""Following runs by the event log: for clients that come back, and for those whose runs another
process executes.

All followers in a process share one look: at what a hint names as soon as it comes, and at
everything that is followed every second. No connection is held in between.
"""

import asyncio
import time

from threadmill.errors import NotFound
from threadmill.lifecycle import RunStatus
from threadmill.runs import retold, seq
from threadmill.runs.events import CUT_SHORT, DONE, Listener, behind, said, without_content
from threadmill.runs.log import FOLLOW, HINT_MAX_RUNS, EventLog
from threadmill.settings import Settings
from threadmill.store import notify, run_events, runs
from threadmill.store.database import Connection, Database
from threadmill.store.rows import Run
from threadmill.store.run_events import Row

_LOOK_EVERY_S = 1.0
_ANNOUNCE_EVERY_LOOKS = 10  # whoever executes the run believes for 30 s that it is followed
_ON_ITS_WAY_S = 5.0
_BACKLOG_MAX_BYTES = 1024**2  # not read by a client: until it is, the log can wait


class Follower:
    """One client's way through the events of a run."""

    def __init__(self, run_id: str, after: int, listener: Listener) -> None:
        self.run_id = run_id
        self.after = after
        self.listener = listener
        self.has_ended = False
        self.silent_looks = 0

    @property
    def takes_more(self) -> bool:
        return not self.has_ended and self.listener.backlog_bytes < _BACKLOG_MAX_BYTES

    def take(self, row: Row) -> None:
        if self.has_ended or row.last_seq <= self.after:
            return
        if row.first_seq > self.after and seq.is_missing(self.after, row.first_seq):
            self.cut_short()
            return
        frames = row.frames if row.first_seq > self.after else behind(row.frames, self.after)
        self.listener.put(frames if self.listener.shows_content else without_content(frames))
        self.after, self.silent_looks = row.last_seq, 0
        if row.is_end:
            self.end()

    def end(self) -> None:
        self.has_ended = True
        self.listener.end()

    def cut_short(self) -> None:
        self.listener.put(CUT_SHORT)
        self.end()


class Followers:
    def __init__(self, database: Database, log: EventLog, settings: Settings) -> None:
        self._database = database
        self._log = log
        self._kept_s = settings.event_log_retention_s
        self._backlog_max_bytes = settings.stream_backlog_max_bytes
        self._followers: dict[str, list[Follower]] = {}
        self._news: set[str] = set()  # runs that may have said something
        self._unannounced: set[str] = set()
        self._has_news = asyncio.Event()
        self._is_left = asyncio.Event()

    def follow(self, run_id: str, after: int, *, shows_content: bool = False) -> Follower:
        listener = Listener(self._backlog_max_bytes, shows_content=shows_content)
        follower = Follower(run_id, after, listener)
        self._followers.setdefault(run_id, []).append(follower)
        self._unannounced.add(run_id)
        self._look_at({run_id})
        return follower

    async def pick_up(self, run: Run, after: int, *, shows_content: bool) -> Follower:
        """Follow from a number on. Raises NotFound where the events behind it are gone."""
        async with self._database.connection() as connection:
            last = await run_events.last(connection, run.id)
            first_seq = await run_events.first_behind(connection, run.id, after)
        is_gone = last is None and run.has_ended and not _has_just_ended(run)
        if is_gone or (first_seq > after and seq.is_missing(after, first_seq)):
            raise NotFound(
                f"The events of run '{run.id}' are not all there any more: they are kept for"
                f" {self._kept_s} s after its end, and only the latest of very many. Retrieve the"
                " run instead.",
                code="events_gone",
            )
        follower = self.follow(run.id, after, shows_content=shows_content)
        if _is_over(run) and last is not None:
            _end_if_all_is_read(follower, run, last)
        return follower

    def leave(self, follower: Follower) -> None:
        follower.listener.close()
        others = self._followers[follower.run_id]
        others.remove(follower)
        if not others:
            del self._followers[follower.run_id]
            self._is_left.set()

    def on_hint(self, run_ids: list[str]) -> None:
        if followed := self._followers.keys() & run_ids:
            self._look_at(followed)

    async def drain(self, patience_s: float) -> None:
        """Let what is followed here come to its end for so long, then break off."""
        try:
            async with asyncio.timeout(patience_s):
                while self._followers:
                    self._is_left.clear()
                    await self._is_left.wait()
        except TimeoutError:
            for follower in self._all():
                follower.cut_short()

    # --- services: each runs until it is cancelled ---

    async def read(self) -> None:
        """Pass on what is new in the log."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            run_ids, self._news = self._news & self._followers.keys(), set()
            if run_ids:
                async with self._database.connection() as connection:
                    await self._announce(connection)
                    await self._pass_on(connection, run_ids)

    async def look(self) -> None:
        """What no hint has told: events, and ends that nobody could tell."""
        looks = 0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if not self._followers:
                continue
            looks += 1
            if looks % _ANNOUNCE_EVERY_LOOKS == 0:
                self._unannounced.update(self._followers)
            silent = {one.run_id for one in self._all() if one.silent_looks}
            for follower in self._all():
                follower.silent_looks += 1
            self._look_at(set(self._followers))
            if silent:
                async with self._database.connection() as connection:
                    await self._look_for_ends(connection, sorted(silent))

    # --- what they share ---

    def _all(self) -> list[Follower]:
        return [follower for followers in self._followers.values() for follower in followers]

    def _look_at(self, run_ids: set[str]) -> None:
        self._news |= run_ids
        self._has_news.set()

    async def _announce(self, connection: Connection) -> None:
        """Say that the runs are followed, so that what they say is written at once."""
        elsewhere = [one for one in self._unannounced if not self._log.watch(one)]
        self._unannounced.clear()
        for at in range(0, len(elsewhere), HINT_MAX_RUNS):
            await notify.hint(
                connection, f"{FOLLOW}:" + ",".join(elsewhere[at : at + HINT_MAX_RUNS])
            )

    async def _pass_on(self, connection: Connection, run_ids: set[str]) -> None:
        ready = {
            run_id: [one for one in self._followers.get(run_id, ()) if one.takes_more]
            for run_id in run_ids
        }
        after = {run_id: min(one.after for one in some) for run_id, some in ready.items() if some}
        rows, with_more = await run_events.read(connection, after)
        for row in rows:
            if seq.is_first_said(row.first_seq):
                self._unannounced.add(row.run_id)  # this one may not know it
            for follower in ready[row.run_id]:
                follower.take(row)
        if with_more:
            self._look_at(with_more)

    async def _look_for_ends(self, connection: Connection, run_ids: list[str]) -> None:
        standing = await runs.standing(connection, run_ids)
        for follower in self._all():
            run = standing.get(follower.run_id)
            if follower.has_ended or follower.run_id not in run_ids:
                continue
            if run is None:
                follower.cut_short()  # it was deleted
            elif _is_over(run):
                last = await run_events.last(connection, run.id)
                if last is not None and last.is_end and last.seq >= seq.base(run.claims):
                    _end_if_all_is_read(follower, run, last)
                elif follower.silent_looks > 2:  # whoever ended it had the time to tell
                    await retold.tell_end(connection, run)


def _end_if_all_is_read(follower: Follower, run: Run, last: run_events.Last) -> bool:
    if not last.is_end or not seq.base(run.claims) <= last.seq <= follower.after:
        return False
    follower.listener.put(said(last.seq, [DONE]).frames)
    follower.end()
    return True


def _is_over(run: Run) -> bool:
    """For those who stream it."""
    return run.has_ended or run.status == RunStatus.REQUIRES_ACTION


def _has_just_ended(run: Run) -> bool:
    """What it said may still be on its way into the log."""
    ended_at = run.completed_at or run.failed_at or run.cancelled_at or run.expires_at
    return time.time() - ended_at < _ON_ITS_WAY_S
