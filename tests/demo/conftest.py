"""Where a demo is started: an environment in which a server would go elsewhere, or nowhere."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the demo makes its folder. As short as it is outside: a socket's path has a limit."""
    folder = tempfile.mkdtemp(prefix="tm-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def environment(temporary: Path) -> dict[str, str]:
    return {
        **os.environ,
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
        "THREADMILL_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "THREADMILL_DATA_DIR": "/nowhere",
        "THREADMILL_MODEL_BASE_URL": "no URL",
        "THREADMILL_API_KEYS": "another",
        "THREADMILL_HOST": "0.0.0.0",
        "THREADMILL_PORT": "99999999",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
        "OPENAI_API_KEY": "secret",
    }
