"""The engines that this process may use, and which of them answer."""

import asyncio
from contextlib import suppress

import msgspec
import structlog

from threadmill.sandbox import docker
from threadmill.sandbox.docker import Engine, EngineAway
from threadmill.sandbox.session import SandboxAway
from threadmill.settings import Settings
from threadmill.store import sandboxes
from threadmill.store.database import Database

log = structlog.get_logger()

_LOOK_AGAIN_AFTER_S = 5.0


class _Place(msgspec.Struct):
    engine: Engine
    looking: asyncio.Lock
    away: EngineAway | None = None
    is_there: bool = False
    look_again_at: float = 0.0  # by the clock of the loop


class Engines:
    def __init__(self, settings: Settings, database: Database, me: str) -> None:
        self._settings = settings
        self._database = database
        self._me = me
        self._places: list[_Place] | None = None

    async def usable(self, *, look_for_all: bool = False) -> list[Engine]:
        """Those that are there. One that was away is asked again in its time: by whoever looks for
        all, or if there is no other. Raises SandboxAway if there is none."""
        places = await self._known()
        if look_for_all or not any(place.is_there for place in places):
            await asyncio.gather(*(self._look(place) for place in places))
        # The same engine may be known by two addresses.
        there = {place.engine.id: place.engine for place in reversed(places) if place.is_there}
        if there:
            return list(there.values())
        reasons = "; ".join(dict.fromkeys(str(place.away) for place in places))
        raise SandboxAway(
            f"There is no Docker engine to run code on: {reasons}."
            " On the server, `threadmill doctor` says what to do."
        )

    async def find(self, engine_id: str) -> Engine | None:
        for look_for_all in (False, True):
            with suppress(SandboxAway):
                for engine in await self.usable(look_for_all=look_for_all):
                    if engine.id == engine_id:
                        return engine
        return None

    async def lose(self, engine: Engine, fault: EngineAway) -> None:
        """It did not answer: leave it alone for a while."""
        for place in await self._known():
            if place.engine is engine and place.is_there:
                log.warning("docker_engine_lost", host=docker.shown(engine.host), fault=str(fault))
                self._put_away(place, fault)

    def close(self) -> None:
        for place in self._places or []:
            place.engine.close()

    async def _known(self) -> list[_Place]:
        if self._places is None:
            async with self._database.connection() as connection:
                installation = await sandboxes.installation(connection)
            if self._places is None:  # nobody else was faster
                self._places = [
                    _Place(Engine(host, self._settings, installation, self._me), asyncio.Lock())
                    for host in docker.hosts(self._settings.docker_hosts)
                ]
        return self._places

    async def _look(self, place: _Place) -> None:
        async with place.looking:
            if place.is_there or asyncio.get_running_loop().time() < place.look_again_at:
                return
            try:
                await place.engine.connect()
            except EngineAway as fault:
                self._put_away(place, fault)
            else:
                place.is_there, place.away = True, None

    def _put_away(self, place: _Place, fault: EngineAway) -> None:
        place.is_there, place.away = False, fault
        place.look_again_at = asyncio.get_running_loop().time() + _LOOK_AGAIN_AFTER_S
