"""What a run knows: the thread's messages, what it has done itself, the files it may look into. Out
of this the prompt of every turn is made."""

import time
from typing import Any

from threadmill.errors import NotFound
from threadmill.llm.client import ModelClient
from threadmill.runs import budget, code, prompt, retold
from threadmill.runs.citations import Source, Sources
from threadmill.runs.products import Products
from threadmill.runs.scanner import Kind
from threadmill.runs.tools import Toolbox
from threadmill.runtime import Runtime
from threadmill.store import files, messages, runs
from threadmill.store.rows import Message, Run, Step
from threadmill.store.runs import Progress

Json = dict[str, Any]

_HISTORY_MAX_MESSAGES = 20_000  # of a thread that are read for a prompt


class UnfitPrompt(Exception):
    """The model cannot be asked; the message is for `last_error`."""


class Context:
    def __init__(self, runtime: Runtime, run: Run) -> None:
        self.toolbox = Toolbox(run)
        self.sources = Sources()  # passages that the model was given
        self.products = Products()  # files and images of its code
        self.dropped: list[str] = []  # messages that did not fit into the latest prompt
        self.prompt_length = 0  # of the latest prompt, in messages
        self.database_s = 0.0
        self._runtime = runtime
        self._run = run
        self._history: list[Message] | None = None
        self._steps: list[Step] = []

    async def recover(self, *, may_be_untold: bool) -> retold.Left:
        """Learn what earlier executions of the run have done; returns what they have left."""
        async with self._runtime.database.connection() as connection:
            made, self._steps = await runs.open_work(connection, self._run.id)
            if may_be_untold:
                left = await retold.left(connection, self._run, made, self._steps)
            else:
                left = retold.by_rows(made, self._steps)
        for step in self._steps:
            if step.status == "completed":  # else the model never read what came of its calls
                self._recall(step)
        self._run.turns = max([self._run.turns, *(step.turn for step in self._steps)])
        return left

    def _recall(self, step: Step) -> None:
        if step.type == "message_creation":
            self.products.images.clear()  # it has shown them
        for given in (step.given or {}).values():
            if "m" in given:
                self.sources.add(given["m"], [_source(hit) for hit in given["hits"]])
            self.products.images += given.get("images", [])
            for path, file_id in given.get("files", {}).items():
                self.products.add(path, file_id, is_made=True)

    def kinds_of_parts(self) -> list[Kind]:
        """What an answer has to be searched for."""
        kinds: list[Kind] = []
        if self.sources.are_there:
            kinds.append(self.sources)
        if self.products.are_there:
            kinds.append(self.products)
        return kinds

    def remember(self, made: Progress) -> None:
        """Messages and steps that are complete, for the prompt of the next turn."""
        assert self._history is not None
        self._history += made.messages
        self._steps += made.steps

    async def request_body(self) -> Json:
        """Raises UnfitPrompt, and OverBudget where the run's own budget of prompt tokens is what
        it does not fit into."""
        run, runtime = self._run, self._runtime
        entries = await prompt.entries(
            run,
            await self._read_history(),
            self._steps,
            await self._file_names(),
            self._load_image,
        )
        limit = budget.prompt_limit(run, _window(runtime.models, run))
        frame = (run.instructions or "") + self.toolbox.text()
        try:
            fitted = await budget.fit(run, entries, frame, limit, runtime.tokens.count_many)
        except budget.OverBudget:
            if run.max_prompt_tokens is not None:
                raise
            raise UnfitPrompt(
                f"The prompt does not fit into the {_window(runtime.models, run)} tokens"
                f" of the model '{run.model}'."
            ) from None
        if fitted.counted and runtime.tokens.state(run.model).exact:
            async with runtime.database.connection() as connection:
                await messages.save_token_counts(connection, fitted.counted)
        self.dropped = fitted.dropped
        # Turns that an earlier execution left unfinished do not count.
        has_called = any(step.type == "tool_calls" for step in self._steps if step.completed_at)
        body = prompt.request_body(run, self.toolbox, fitted.entries, is_first_turn=not has_called)
        self.prompt_length = len(body["messages"])
        return body

    async def _read_history(self) -> list[Message]:
        if self._history is None:
            run, strategy = self._run, self._run.truncation_strategy
            newest = strategy.get("last_messages") or _HISTORY_MAX_MESSAGES
            written = sum(step.type == "message_creation" for step in self._steps)
            started = time.perf_counter()
            async with self._runtime.database.connection() as connection:
                history = await messages.history(connection, run.thread_id, newest + written)
                # What this run has written comes on top of the newest of the thread.
                own = [message for message in history if message.run_id == run.id]
                told = [message for message in history if message.run_id != run.id][-newest:]
                if len(told) == _HISTORY_MAX_MESSAGES and strategy["type"] == "auto":
                    first = await messages.first(connection, run.thread_id)
                    told = [first, *told] if first and first.id != told[0].id else told
            self.database_s += time.perf_counter() - started
            self._history = told + own
            if self.toolbox.has(code.NAME):
                self.products.recall(told)
        return self._history

    async def _file_names(self) -> dict[str, str]:
        attached = {
            attachment["file_id"]
            for message in self._history or []
            if message.role == "user"  # an answer speaks of its own
            for attachment in message.attachments
        }
        if not attached:
            return {}
        async with self._runtime.database.connection() as connection:
            return await files.names(connection, self._run.project_id, sorted(attached))

    async def _load_image(self, file_id: str) -> bytes:
        limit = self._runtime.settings.image_max_bytes
        try:
            async with self._runtime.database.connection() as connection:
                file = await files.get(connection, self._run.project_id, file_id)
            if file.bytes > limit:
                raise prompt.Unreadable(f"it is larger than {limit} bytes")
            image = await self._runtime.blobs.read(file_id)
            prompt.image_type(image)
        except (NotFound, prompt.Unreadable) as fault:
            raise UnfitPrompt(f"The image '{file_id}' cannot be used: {fault}") from None
        return image


def _window(models: ModelClient, run: Run) -> int:
    route = models.route(run.model)
    if route is None:
        raise UnfitPrompt(f"The requested model '{run.model}' does not exist.")
    return route.context_window_tokens


def _source(hit: Json) -> Source:
    return Source(hit["file_id"], hit["filename"], hit["text"])
