"""The tool code_interpreter: the model writes Python, a sandbox runs it, and what comes of it goes
to the client, into files, and back to the model.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import groupby
from types import NoneType
from typing import Any

from threadmill.runs.calls import CodeCall
from threadmill.runs.folder import Folder
from threadmill.runs.products import Products
from threadmill.runtime import Runtime
from threadmill.sandbox.session import (
    CellEnd,
    Image,
    Output,
    SandboxAway,
    Session,
    Text,
)
from threadmill.store.rows import Run

Json = dict[str, Any]
Tell = Callable[[Json], None]

NAME = "code_interpreter"
FUNCTION: Json = {
    "description": "Run Python in the sandbox of this conversation, as a cell of a notebook:"
    " variables, imports and files are kept from call to call while the session lives, and the"
    " value of a last expression is shown. There are numpy, pandas, scipy, scikit-learn,"
    " statsmodels, sympy, matplotlib, seaborn, pillow, openpyxl, python-docx, python-pptx, pypdf,"
    " reportlab, networkx, lxml and beautifulsoup4; there is no network. You see what is printed;"
    " an error comes with its traceback, so that you can mend the code. Files are in /mnt/data."
    " plt.show() shows a chart to the user, above your next message. To hand over a file, write it"
    " to /mnt/data and link it in your answer: [name.csv](sandbox:/mnt/data/name.csv).",
    "parameters": {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "The Python code to run."}},
        "required": ["code"],
    },
}

_CODE_MAX_BYTES = 1024**2  # what a sandbox takes at once
_TOLD_MAX_CHARACTERS = 16_000  # of a cell's text, to the model; its step keeps all


class CodeInterpreter:
    """The tool in one execution of a run. The thread's session is held from the first call on."""

    def __init__(self, runtime: Runtime, run: Run, products: Products) -> None:
        self._runtime = runtime
        self._run = run
        self._products = products
        self._folder = Folder(runtime, run, products)
        self._session: Session | None = None

    async def find_files(self) -> str:
        """Learn which files the code is given; what the model is told of them."""
        timeout_s = self._runtime.settings.sandbox_cell_timeout_s
        return f" A call is stopped after {timeout_s:g} seconds.{await self._folder.find()}"

    async def use(self, call: CodeCall, tell: Tell) -> Json:
        """Run one call; what is kept of it. Whatever the code did wrong, the model is told as the
        output. Raises SandboxAway if there is nothing to run it in."""
        if refusal := _refusal(call.code):
            return {"arguments": call.arguments, "output": refusal}
        is_first = self._session is None
        try:
            session, notes = await self._ready()
            ready_at = time.time()
            shown_before = len(self._products.images)
            end = await self._run_cell(session, call, tell)
        except SandboxAway:
            if is_first:
                raise
            # It broke while it rested, before the code was sent.
            await self.release()
            return await self.use(call, tell)
        if sentences := _sentences(end, self._runtime.settings.sandbox_cell_timeout_s):
            tell(call.add_text(f"\n{sentences}\n" if call.logs else f"{sentences}\n"))
        if end.status == "error" and is_first and session.is_fresh:
            notes.append("This was the first code of a new session: it began without variables.")
        made = await self._collect(session, notes)
        images = self._products.images[shown_before:]
        if images:
            notes.append(f"Images that the user is shown: {len(images)}.")
        told = _cut(call.logs.strip("\n")) or "There was no output."
        return {
            "arguments": call.arguments,
            "output": "\n\n".join(filter(None, [told, "\n".join(notes)])),
            "status": end.status,
            "ready_at": ready_at,
            "images": images,
            "files": made,
        }

    async def release(self) -> None:
        """Let go of the session: whoever executes the thread's next run may want it at once."""
        session, self._session = self._session, None
        if session is not None:
            await self._runtime.sandboxes.release(session)

    async def _ready(self) -> tuple[Session, list[str]]:
        """The session with its files, and what the model is told of these."""
        if self._session is None:
            run = self._run
            self._session = await self._runtime.sandboxes.hold(
                project_id=run.project_id, thread_id=run.thread_id
            )
            self._folder.recall(self._session)
        return self._session, await self._folder.put_missing(self._session)

    async def _run_cell(self, session: Session, call: CodeCall, tell: Tell) -> CellEnd:
        outputs: asyncio.Queue[Output | None] = asyncio.Queue()
        telling = asyncio.create_task(self._pass_on(outputs, call, tell))
        timeout_s = self._runtime.settings.sandbox_cell_timeout_s
        try:
            end = await session.run(call.code, timeout_s=timeout_s, on_output=outputs.put_nowait)
            outputs.put_nowait(None)
            await telling
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        return end

    async def _pass_on(
        self, outputs: asyncio.Queue[Output | None], call: CodeCall, tell: Tell
    ) -> None:
        """In the order in which they came, however long an image takes to be stored. Text that has
        come meanwhile is told at once."""
        while True:
            come = [await outputs.get()]
            while not outputs.empty():
                come.append(outputs.get_nowait())
            for kind, alike in groupby(come, type):
                if kind is NoneType:
                    return
                if kind is Text:
                    text = "".join(output.text for output in alike if isinstance(output, Text))
                    tell(call.add_text(text.replace("\0", "\ufffd")))  # Postgres has no NUL
                    continue
                for image in alike:
                    assert isinstance(image, Image)
                    file_id = await self._folder.store_image(image.png)
                    self._products.images.append(file_id)
                    tell(call.add_image(file_id))

    async def _collect(self, session: Session, notes: list[str]) -> Json:
        """The files that the code made, by their paths; adds what the model is told of them."""
        if not session.is_broken:
            try:
                made, told = await self._folder.collect(session)
                notes += told
                return made
            except SandboxAway:
                pass  # it broke just now, and what was made is lost with it
        await self.release()
        notes.append("The session is gone with its files; the next call begins a new one.")
        return {}


def opened(tool: Json) -> Json:
    """A call as its step shows it before any code is written."""
    return {"input": "", "outputs": []}


def _refusal(code: str) -> str | None:
    if not code.strip():
        return 'Give the code to run: {"code": "..."}.'
    if len(code.encode()) > _CODE_MAX_BYTES:
        return f"The code is longer than {_CODE_MAX_BYTES} bytes. It was not run."
    return None


def _sentences(end: CellEnd, timeout_s: float) -> str:
    """How a cell ended, if not by itself. The client and the model are told the same."""
    said = []
    if end.status == "timeout":
        said.append(f"The code was stopped after {timeout_s:g} seconds.")
    elif end.status == "interrupted":
        said.append("The code was interrupted.")
    elif end.status == "died":
        said.append(end.detail or "The process that ran the code has died.")
    if said:
        said.append("Its variables are gone." if end.restarted else "Its variables are kept.")
    if end.truncated:
        said.append("There was more output than is kept.")
    return " ".join(said)


def _cut(text: str) -> str:
    """The beginning and the end of what is too long for the model."""
    left_out = len(text) - _TOLD_MAX_CHARACTERS
    if left_out <= 0:
        return text
    half = _TOLD_MAX_CHARACTERS // 2
    return f"{text[:half]}\n[{left_out} characters left out]\n{text[-half:]}"
