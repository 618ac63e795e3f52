"""The Docker engines. The one door to the `docker` package, which blocks: it runs in threads."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import docker
import docker.errors
import docker.utils
import msgspec
import requests

LOCAL_HOST = "unix:///var/run/docker.sock"


class EngineAway(Exception):
    """An engine cannot be used, in words for people and without its password."""


class Engine(msgspec.Struct):
    version: str
    has_image: bool


def hosts(configured: list[str]) -> list[str]:
    return configured or [os.environ.get("DOCKER_HOST") or LOCAL_HOST]


def shown(host: str) -> str:
    """A host as it may be printed: ssh:// and tcp:// may carry a password."""
    try:
        parts = urlsplit(host)
        if parts.password is None:
            return host
        bare = parts.netloc.replace(f":{parts.password}@", "@")
        return parts._replace(netloc=bare).geturl()
    except ValueError:
        return "(a host that is not a URL)"


async def look(host: str, image: str, timeout_s: float) -> Engine:
    """What an engine is, and whether it has the image. Raises EngineAway."""
    return await asyncio.to_thread(_look, host, image, timeout_s)


def _look(host: str, image: str, timeout_s: float) -> Engine:
    # requests' own errors leave the package as they are, and so does a socket's time running out.
    faults = (docker.errors.DockerException, requests.RequestException, OSError, ValueError)
    try:
        with _client(host, timeout_s) as client:
            return Engine(str(client.version()["Version"]), _has(client, image))
    except faults as fault:
        raise EngineAway(_words(fault).replace(host, shown(host))) from fault


@contextmanager
def _client(host: str, timeout_s: float) -> Iterator[docker.DockerClient]:
    if host.startswith("unix://"):
        _knock(host.removeprefix("unix://"), timeout_s)
    environment = docker.utils.kwargs_from_env()  # DOCKER_TLS_VERIFY, DOCKER_CERT_PATH
    client = docker.DockerClient(**{**environment, "base_url": host, "timeout": timeout_s})
    try:
        yield client
    finally:
        client.close()


def _knock(path: str, timeout_s: float) -> None:
    """The package forgets to close a Unix socket at which nobody answers: find that out first."""
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(timeout_s)
        knock.connect(path or LOCAL_HOST.removeprefix("unix://"))


def _has(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _words(fault: Exception) -> str:
    if isinstance(fault, FileNotFoundError):
        return "there is no such socket"
    if isinstance(fault, PermissionError):
        return "this user may not open the socket (on Linux: the group docker may)"
    if isinstance(fault, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(fault, TimeoutError):
        return "no answer in time"
    return " ".join(str(fault).split())
