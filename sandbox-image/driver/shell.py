"""Inside the worker: IPython's shell without its terminal, its history and its files.

Whatever a notebook would show leaves through the channel; text goes to descriptors 1 and 2 as
everywhere, so that it keeps its order with what subprocesses write.
"""

import base64
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

from IPython.core import page
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from traitlets import Type
from traitlets.config import Config

from .wire import (
    MESSAGE_HEAD,
    MESSAGE_MAX_BYTES,
    Kind,
    pack_message,
)
from .worker import leave

RESULT_MAX_BYTES = 1024 * 1024
TRACEBACK_MAX_BYTES = 48 * 1024
SHOWN_TYPES = ["text/plain", "image/png", "image/jpeg"]


class Interrupts:
    """What SIGINT does: KeyboardInterrupt while a cell runs, but not amid a message."""

    def __init__(self) -> None:
        self._pending = False
        self.disarm()

    def arm(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def disarm(self) -> None:
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """One that comes meanwhile comes afterwards, to whatever handler the code has."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGINT, self._note)
        self._pending = False
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
        if self._pending and callable(handler):
            handler(signal.SIGINT, None)


class Channel:
    """The way to PID 1, for the worker itself: processes that the code forks send nothing."""

    def __init__(self, descriptor: int, interrupts: Interrupts) -> None:
        self._descriptor = descriptor
        self._interrupts = interrupts
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def send(self, kind: Kind, body: bytes) -> None:
        """Returns when what was sent has its place behind the text before it. Other threads do not
        wait for that: the answer would reach the main one."""
        if not self.is_own():
            return
        flush_streams()
        waits = kind != Kind.DONE and threading.current_thread() is threading.main_thread()
        rest = memoryview(pack_message(kind, body, waits=waits))
        with self._interrupts.held():
            with self._lock:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            if waits:
                self.receive()

    def receive(self) -> tuple[bytes, bytes]:
        kind, _, body_bytes = MESSAGE_HEAD.unpack(self._read(MESSAGE_HEAD.size))
        return kind, self._read(body_bytes)

    def _read(self, count: int) -> bytes:
        arrived = b""
        while len(arrived) < count:
            piece = os.read(self._descriptor, count - len(arrived))
            if not piece:
                leave(0)
            arrived += piece
        return arrived

    def is_own(self) -> bool:
        return os.getpid() == self._owner


class Results(DisplayHook):
    """The value of a cell's last expression."""

    shell: "Shell"

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(
        self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None
    ) -> None:
        self.shell.show(format_dict)

    def log_output(self, format_dict: dict[str, Any]) -> None:
        """IPython keeps every text and image; nobody would ask for them here."""


class Displays(DisplayPublisher):
    """What code displays on its way, figures among it."""

    shell: "Shell"

    def publish(self, data: dict[str, Any], *_: Any, **__: Any) -> None:
        self.shell.show(data)

    def clear_output(self, wait: bool = False) -> None:
        """What is gone is gone: output goes into a log."""


class Shell(InteractiveShell):
    displayhook_class = Type(Results)
    display_pub_class = Type(Displays)
    channel: Channel | None = None

    # Into our descriptors; IPython's way is a terminal of its own.
    system = InteractiveShell.system_raw

    def init_ipython_dir(self, ipython_dir: str | None) -> None:
        """None: it would be made in HOME."""

    def init_profile_dir(self, profile_dir: Any) -> None:
        pass

    def ask_exit(self) -> NoReturn:
        raise SystemExit

    def enable_gui(self, gui: str | None = None) -> None:
        """There is no screen."""

    @contextmanager
    def _tee(self, channel: str) -> Iterator[None]:
        """IPython keeps everything that is printed; nobody would ask for it here."""
        yield

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        self.say(Kind.ERROR, shorten(self.InteractiveTB.stb2text(stb)) + "\n")

    def show(self, data: dict[str, Any]) -> None:
        """An image if there is one, else text."""
        png = as_png(data)
        if png is None:
            text = str(data.get("text/plain", ""))
            self.say(Kind.RESULT, text[:RESULT_MAX_BYTES] + "\n")
        elif self.channel:
            self.channel.send(Kind.IMAGE, png if len(png) <= MESSAGE_MAX_BYTES else b"")

    def say(self, kind: Kind, text: str) -> None:
        if self.channel:
            self.channel.send(kind, text.encode(errors="backslashreplace"))


def make_shell(*, loads_matplotlib: bool = True) -> Shell:
    """Made once, before the fork, with what a first cell would load. Matplotlib that is loaded
    later finds the shell by itself."""
    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.automagic = False
    config.InteractiveShell.banner1 = ""
    shell = Shell.instance(config=config)
    assert shell.display_formatter
    shell.display_formatter.active_types = SHOWN_TYPES
    shell.set_hook("show_in_pager", page.as_hook(page.display_page), 90)
    shell.events.register("post_execute", show_open_figures)
    warnings.filterwarnings("ignore", message="To exit: use")
    if loads_matplotlib:
        with suppress(ImportError):
            shell.enable_matplotlib("inline")
    shell.run_cell("1")
    shell.run_cell("1 / 0")
    return shell


def show_open_figures() -> None:
    """Those that the inline backend does not know of: the code has chosen another one."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return
    for number in pyplot.get_fignums():
        display(pyplot.figure(number))
    pyplot.close("all")


def live(channel: int, stdout: int, stderr: int) -> NoReturn:
    """Cells, one after the other, until PID 1 is gone."""
    interrupts = Interrupts()
    shell = Shell.instance()
    shell.channel = Channel(channel, interrupts)
    streams = [Stream("stdout", 1, stdout), Stream("stderr", 2, stderr)]
    while True:
        kind, code = shell.channel.receive()
        if kind != Kind.CODE:
            continue
        for stream in streams:
            stream.restore()
        ended_well = run(shell, code.decode(errors="replace"), interrupts)
        if not ended_well and not is_sound(shell):
            leave(1)
        if not shell.channel.is_own():
            # A child that the code has forked came back from it. There is one of us.
            flush_streams()
            leave(0)
        shell.channel.send(Kind.DONE, b"ok" if ended_well else b"error")


def is_sound(shell: Shell) -> bool:
    """Code can break the shell that runs it; then only a new one helps."""
    with suppress(BaseException):
        return shell.run_cell("0", silent=True).success is True
    return False


def run(shell: Shell, code: str, interrupts: Interrupts) -> bool:
    try:
        try:
            interrupts.arm()
            return bool(shell.run_cell(code, store_history=True).success)
        finally:
            interrupts.disarm()
    except BaseException:
        interrupts.disarm()
        shell.say(Kind.ERROR, shorten(traceback.format_exc()))
        return False


class Stream:
    """sys.stdout or sys.stderr, the same at the start of every cell whatever the last one did."""

    def __init__(self, name: str, number: int, outlet: int) -> None:
        self._name, self._number, self._outlet = name, number, outlet
        self._file = self._open()

    def restore(self) -> None:
        os.dup2(self._outlet, self._number)
        if self._file.closed:
            self._file = self._open()
        setattr(sys, self._name, self._file)

    def _open(self) -> TextIO:
        return open(
            self._number,
            "w",
            buffering=1,
            encoding="utf-8",
            errors="backslashreplace",
            closefd=False,
        )


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the code may have put anything there
            stream.flush()


def as_png(data: dict[str, Any]) -> bytes | None:
    """Formatters give images as bytes or in base64."""
    for kind in ("image/png", "image/jpeg"):
        image = data.get(kind)
        if image:
            raw = base64.b64decode(image) if isinstance(image, str) else bytes(image)
            return raw if kind == "image/png" else converted(raw)
    return None


def converted(jpeg: bytes) -> bytes | None:
    with suppress(Exception):  # no Pillow, or no image
        from PIL import Image

        png = io.BytesIO()
        Image.open(io.BytesIO(jpeg)).save(png, "PNG")
        return png.getvalue()
    return None


def shorten(text: str) -> str:
    """The start and the end: the last line of a traceback says most."""
    if len(text) <= TRACEBACK_MAX_BYTES:
        return text
    half = TRACEBACK_MAX_BYTES // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"
