"""Tests that start containers: on a real engine, with the real image."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from sandbox.yard import Yard
from threadmill.sandbox import docker
from threadmill.settings import Settings
from threadmill.store.database import Database


@pytest.fixture(scope="session")
def engine() -> str:
    """The address of an engine that has the image. Without one the test is skipped; not where CI
    has been given an engine, for there all must be tested."""
    host = docker.hosts([])[0]
    image = Settings().sandbox_image
    try:
        facts = asyncio.run(docker.look(host, image, 10))
    except docker.EngineAway as fault:
        missing: str | None = f"no Docker engine at {host} ({fault})"
    else:
        missing = facts.fault_of(image)
    if missing is None:
        return host
    if os.environ.get("CI") == "true" and shutil.which("dockerd"):
        pytest.fail(f"the sandbox cannot be tested: {missing}")
    pytest.skip(f"the sandbox is not tested: {missing}")


@pytest_asyncio.fixture
async def yard(engine: str, database: Database) -> AsyncIterator[Yard]:
    async with Yard(engine, database) as yard:
        yield yard
        await yard.close()
        assert await yard.containers() == []


@pytest.fixture
def sandbox_settings(engine: str) -> dict[str, Any]:
    """For servers that are to have a sandbox: `serve(**sandbox_settings)`."""
    return {"docker_hosts": [engine], "sandbox_warm_sessions": 0}
