"""The Docker engines. The one door to the `docker` package, which blocks: it runs in threads."""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import docker
import docker.constants
import docker.errors
import docker.tls
import docker.utils
import msgspec
import requests

from threadmill.sandbox.attachment import Address, Attachment
from threadmill.sandbox.frames import PROTOCOL, Broken
from threadmill.settings import Settings

LOCAL_HOST = "unix:///var/run/docker.sock"

INSTALLATION = "threadmill.installation"
OWNER = "threadmill.owner"
ROLE = "threadmill.role"
SESSION, WARM = "session", "warm"
_PROTOCOL = "threadmill.protocol"  # of an image

_KNOCK_TIMEOUT_S = 3.0
_CALLS_AT_ONCE = 8
_NOBODY = 65534
_SHARED_MEMORY_BYTES = 64 * 1024**2
_OPEN_FILES_MAX = 1024

# requests' own errors leave the package as they are, and so does a socket's time running out.
_FAULTS = (docker.errors.DockerException, requests.RequestException, OSError, ValueError)

_INSIDE_THE_PACKAGE = Path(__file__).parents[1] / "sandbox-image"  # in the wheel
_BESIDE_THE_PACKAGE = Path(__file__).parents[3] / "sandbox-image"  # in a checkout

Result = TypeVar("Result")


class EngineAway(Exception):
    """An engine cannot be used, in words for people and without its password."""


class ContainerFault(Exception):
    """The engine answers, but cannot do what was asked: a container is gone, or cannot be made."""


class Facts(msgspec.Struct, frozen=True):
    """What an engine says about itself."""

    id: str
    version: str
    image_protocol: str | None  # what its driver speaks; None: there is no image

    def fault_of(self, image: str) -> str | None:
        """Why containers cannot be made of the image, and what to type."""
        if self.image_protocol is None:
            return f"it has no image {image}; type: threadmill sandbox build"
        if self.image_protocol != PROTOCOL:
            return f"its image {image} was built by another version; type: threadmill sandbox build"
        return None


class Container(msgspec.Struct, frozen=True):
    name: str
    owner: str  # the process that made it
    created_at: int


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


def image_folder() -> Path:
    """Of what the image is built."""
    return _INSIDE_THE_PACKAGE if _INSIDE_THE_PACKAGE.exists() else _BESIDE_THE_PACKAGE


async def look(host: str, image: str, timeout_s: float) -> Facts:
    """What an engine is, and whether it has the image. Raises EngineAway."""
    return await asyncio.to_thread(_look, host, image, timeout_s)


class Engine:
    """The containers of one engine. Every method raises EngineAway if the engine does not answer,
    and ContainerFault if it cannot do with the container what was asked."""

    def __init__(self, host: str, settings: Settings, installation: str, owner: str) -> None:
        self.host = host
        self.id = ""  # known once `connect` was there
        self._settings = settings
        self._labels = {INSTALLATION: installation, OWNER: owner}
        # Its own threads: an engine that hangs must not keep others from theirs.
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="docker")
        self._client: docker.APIClient | None = None
        self._address: Address | None = None

    async def connect(self) -> None:
        """Must have succeeded before anything else is asked. Raises EngineAway."""
        try:
            if self._client is None:
                timeout_s = self._settings.sandbox_engine_timeout_s
                self._client, self._address = await self._call(_connect, self.host, timeout_s)
            facts = await self._ask(lambda client: _facts(client, self._settings.sandbox_image))
        except ContainerFault as fault:
            raise EngineAway(str(fault)) from fault
        if why_not := facts.fault_of(self._settings.sandbox_image):
            raise EngineAway(why_not)
        self.id = facts.id

    async def create(self, name: str, role: str) -> None:
        """One that is made for a session is ready sooner: it has not loaded the large packages,
        which is three quarters of the work and may not be wanted. A warm one has."""
        config = _config(self._settings, {**self._labels, ROLE: role})
        if role == SESSION:
            config["Env"].append("SANDBOX_AWAITED=1")
        await self._ask(lambda client: client.create_container_from_config(config, name))

    async def start(self, name: str) -> None:
        await self._ask(lambda client: client.start(name))

    async def attach(self, name: str) -> Attachment:
        assert self._address is not None
        try:
            async with asyncio.timeout(self._settings.sandbox_engine_timeout_s):
                return await Attachment.open(self._address, name)
        except Broken as fault:
            raise ContainerFault(str(fault)) from fault
        except OSError as fault:
            raise EngineAway(_words(fault)) from fault

    async def pause(self, name: str) -> None:
        """Also when it is paused already."""
        await self._ask(lambda client: _into_state(client, client.pause, name, is_paused=True))

    async def unpause(self, name: str) -> None:
        """Also when it is not paused."""
        await self._ask(lambda client: _into_state(client, client.unpause, name, is_paused=False))

    async def remove(self, name: str) -> None:
        """Also when it is gone already."""
        await self._ask(lambda client: _remove(client, name))

    async def containers(self) -> list[Container]:
        """Every container of this installation, whoever made it, in whatever state."""
        label = f"{INSTALLATION}={self._labels[INSTALLATION]}"
        return await self._ask(lambda client: _containers(client, label))

    def close(self) -> None:
        """Calls that are under way end by themselves, in their time."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _ask(self, question: Callable[[docker.APIClient], Result]) -> Result:
        if self._client is None:
            raise EngineAway("it has not been reached yet")
        return await self._call(_knock_and_ask, self.host, self._client, question)

    async def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, function, *arguments)
        except docker.errors.APIError as fault:
            raise ContainerFault(_words(fault)) from fault
        except _FAULTS as fault:
            raise EngineAway(_words(fault).replace(self.host, shown(self.host))) from fault


def _config(settings: Settings, labels: dict[str, str]) -> dict[str, Any]:
    """What POST /containers/create takes: a container that can compute and nothing else."""
    threads = str(max(1, round(settings.sandbox_cpus)))
    # Code may be run from /mnt/data: a package that somebody uploaded has compiled parts, and who
    # wants to run what is in memory can do so anyway.
    data = _tmpfs(settings, settings.sandbox_disk_max_bytes, "exec")
    host = {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "Tmpfs": {
            "/mnt/data": data,
            "/tmp": _tmpfs(settings, settings.sandbox_tmp_max_bytes, "noexec"),
        },
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={_seccomp_profile()}"],
        "PidsLimit": settings.sandbox_pids_max,
        "Memory": settings.sandbox_memory_max_bytes,
        "MemorySwap": settings.sandbox_memory_max_bytes,
        "NanoCpus": int(settings.sandbox_cpus * 1e9),
        "OomScoreAdj": 500,  # when the machine has no memory left, not the database
        "LogConfig": {"Type": "none"},
        "Ulimits": [
            _ulimit("core", 0),
            _ulimit("nofile", _OPEN_FILES_MAX),
            _ulimit("msgqueue", 0),
            _ulimit("fsize", settings.sandbox_disk_max_bytes),
        ],
        "IpcMode": "private",
        "ShmSize": _SHARED_MEMORY_BYTES,
        "Init": False,  # a second process of root's would stand between us and the driver
        "RestartPolicy": {"Name": "no"},
    }
    if settings.sandbox_runtime is not None:
        host["Runtime"] = settings.sandbox_runtime
    return {
        "Image": settings.sandbox_image,
        "Hostname": "sandbox",
        "User": f"{_NOBODY}:{_NOBODY}",
        "Env": [f"{library}_NUM_THREADS={threads}" for library in ("OMP", "OPENBLAS", "MKL")],
        "Labels": labels,
        "NetworkDisabled": True,
        "OpenStdin": True,
        "StdinOnce": False,  # a process may let go of a container, and another attach
        "Tty": False,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host,
    }


def _tmpfs(settings: Settings, size_bytes: int, execution: str) -> str:
    inodes = settings.sandbox_inodes_max
    rights = f"rw,nosuid,nodev,{execution},mode=0700,uid={_NOBODY},gid={_NOBODY}"
    return f"{rights},size={size_bytes},nr_inodes={inodes}"


def _ulimit(name: str, limit: int) -> dict[str, Any]:
    return {"Name": name, "Soft": limit, "Hard": limit}


def _seccomp_profile() -> str:
    return (image_folder() / "seccomp.json").read_text()


# --- what runs in threads ---


def _look(host: str, image: str, timeout_s: float) -> Facts:
    with client_of(host, timeout_s) as client:
        return _facts(client, image)


@contextmanager
def client_of(host: str, timeout_s: float) -> Iterator[docker.APIClient]:
    """For one errand, which blocks. Raises EngineAway, whatever goes wrong on it."""
    try:
        client = _open(host, timeout_s)
        try:
            yield client
        finally:
            client.close()
    except _FAULTS as fault:
        raise EngineAway(_words(fault).replace(host, shown(host))) from fault


def _open(host: str, timeout_s: float) -> docker.APIClient:
    _knock(host, timeout_s)
    with closing(_client(host, timeout_s, docker.constants.MINIMUM_DOCKER_API_VERSION)) as client:
        version = client.version(api_version=False)["ApiVersion"]
    return _client(host, timeout_s, version)


def _client(host: str, timeout_s: float, api_version: str) -> docker.APIClient:
    environment = docker.utils.kwargs_from_env()  # DOCKER_TLS_VERIFY, DOCKER_CERT_PATH
    options = {**environment, "base_url": host, "timeout": timeout_s, "version": api_version}
    client = docker.APIClient(**options)
    if host.startswith("unix://"):
        # The package would keep a connection open for each of the last 25 paths that were asked
        # for, and every container has paths of its own.
        client.headers["Connection"] = "close"
    # Or requests would believe REQUESTS_CA_BUNDLE more than the certificate that was given.
    client.trust_env = False
    return client


def _connect(host: str, timeout_s: float) -> tuple[docker.APIClient, Address]:
    client = _open(host, timeout_s)
    try:
        return client, _address(host, client.api_version)
    except Exception:
        client.close()
        raise


def _address(host: str, api_version: str) -> Address:
    tls: docker.tls.TLSConfig | None = docker.utils.kwargs_from_env().get("tls")
    parts = urlsplit(docker.utils.parse_host(host, tls=tls is not None))
    if parts.scheme == "http+unix":
        return Address(api_version, path=parts.path)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{parts.scheme}:// is no way to a sandbox's engine; forward its socket")
    context = _tls_context(tls) if parts.scheme == "https" else None
    return Address(api_version, host=parts.hostname or "", port=parts.port or 0, tls=context)


def _tls_context(tls: docker.tls.TLSConfig | None) -> ssl.SSLContext:
    if tls is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cafile=tls.ca_cert if tls.verify else None)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert:
        context.load_cert_chain(*tls.cert)
    return context


def _knock_and_ask(
    host: str, client: docker.APIClient, question: Callable[[docker.APIClient], Result]
) -> Result:
    _knock(host, _KNOCK_TIMEOUT_S)
    return question(client)


def _knock(host: str, timeout_s: float) -> None:
    """The package forgets to close a Unix socket at which nobody answers: find that out first."""
    if not host.startswith("unix://"):
        return
    with socket.socket(socket.AF_UNIX) as knock:
        knock.settimeout(timeout_s)
        knock.connect(host.removeprefix("unix://") or LOCAL_HOST.removeprefix("unix://"))


def _facts(client: docker.APIClient, image: str) -> Facts:
    info = client.info()
    try:
        labels = client.inspect_image(image)["Config"].get("Labels") or {}
        protocol = str(labels.get(_PROTOCOL, ""))
    except docker.errors.ImageNotFound:
        protocol = None
    return Facts(str(info["ID"]), str(info["ServerVersion"]), protocol)


def _into_state(
    client: docker.APIClient, move: Callable[[str], None], name: str, *, is_paused: bool
) -> None:
    try:
        move(name)
    except docker.errors.APIError:
        # Engines differ in how they say that it is so already.
        state = client.inspect_container(name)["State"]
        if not state["Running"] or state["Paused"] != is_paused:
            raise


def _remove(client: docker.APIClient, name: str) -> None:
    try:
        client.remove_container(name, force=True, v=True)
    except docker.errors.APIError as fault:
        if fault.status_code not in (404, 409):  # 409: it is being removed
            raise


def _containers(client: docker.APIClient, label: str) -> list[Container]:
    return [
        Container(
            name=str(found["Names"][0]).removeprefix("/"),
            owner=str(found["Labels"].get(OWNER, "")),
            created_at=int(found["Created"]),
        )
        for found in client.containers(all=True, filters={"label": label})
        if found["Names"]  # one that is being removed has none any more
    ]


def _words(fault: BaseException) -> str:
    if not isinstance(fault, docker.errors.APIError):
        fault = _root(fault)
    if isinstance(fault, FileNotFoundError):
        return "there is no such socket"
    if isinstance(fault, PermissionError):
        return "this user may not open the socket (on Linux: the group docker may)"
    if isinstance(fault, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(fault, TimeoutError | requests.Timeout):
        return "no answer in time"
    if isinstance(fault, docker.errors.APIError) and fault.explanation:
        return " ".join(str(fault.explanation).split())
    return " ".join(str(fault).split())


def _root(fault: BaseException) -> BaseException:
    """What the package and those below it were told by the system."""
    while deeper := fault.__cause__ or fault.__context__:
        fault = deeper
    return fault
