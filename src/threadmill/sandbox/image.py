"""Building the image that code runs in. It blocks: a command has nothing else to do meanwhile."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import docker
import orjson

from threadmill.sandbox.docker import EngineAway, client_of, image_folder, shown

BASE = "threadmill-sandbox-base:latest"  # what `make_base` makes

_SILENCE_MAX_S = 900.0  # between two words of an engine: unpacking takes long on a slow disk
# What a machine needs that reaches packages in a way of its own.
_PASSED_ON = (
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"),
)

Say = Callable[[str], None]


class BuildError(Exception):
    """An image could not be built, in words for people."""


def build(host: str, image: str, base: str | None, say: Say) -> None:
    """Build it on an engine, on the Dockerfile's own base or another one. Raises BuildError, and
    EngineAway."""
    arguments = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    if base is not None:
        arguments["BASE_IMAGE"] = base
    with _engine(host) as client:
        for event in client.build(
            path=str(image_folder()), tag=image, buildargs=arguments, forcerm=True, decode=True
        ):
            _follow(event, say)


def make_base(hosts: list[str], say: Say) -> None:
    """Make a base of Debian's packages, for machines that reach those but no registry of images,
    and put it on the engines as BASE. Raises BuildError, and EngineAway."""
    if shutil.which("mmdebstrap") is None:
        raise BuildError("mmdebstrap is not installed. On Debian, type: apt install mmdebstrap")
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        # Through sh, as what is installed from a wheel may not be executable.
        made = subprocess.run(["sh", str(image_folder() / "make-base")], stdout=archive)
        if made.returncode:
            raise BuildError(f"The base could not be made (exit code {made.returncode}).")
        for host in hosts:
            _import(host, archive.name)
            say(f"{BASE} is on {shown(host)}")


def _import(host: str, archive: str) -> None:
    repository, tag = BASE.split(":")
    with _engine(host) as client:
        answer = client.import_image_from_file(archive, repository=repository, tag=tag)
        for line in answer.splitlines():
            _follow(orjson.loads(line), lambda text: None)


@contextmanager
def _engine(host: str) -> Iterator[docker.APIClient]:
    try:
        with client_of(host, _SILENCE_MAX_S) as client:
            yield client
    except EngineAway as fault:
        raise EngineAway(f"The engine at {shown(host)} cannot be used: {fault}") from fault


def _follow(event: dict[str, Any], say: Say) -> None:
    """Say what an engine says, and raise where that is a failure."""
    if "error" in event:
        raise BuildError(" ".join(str(event["error"]).split()))
    if text := str(event.get("stream", "")).rstrip():
        say(text)
    elif "status" in event and "progressDetail" not in event:  # of a base that is downloaded
        say(str(event["status"]))
