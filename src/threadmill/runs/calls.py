"""A tool call as its step shows it: what the model writes, and what a tool of ours puts out."""

from typing import Any

import msgspec

from threadmill.runs.code_argument import CodeArgument

Json = dict[str, Any]


class Call:
    def __init__(self, index: int, call_id: str, name: str, kind: str, opened: Json) -> None:
        """`kind`: of the call in the step. `opened`: what is shown before anything is written."""
        self.index = index
        self.id = call_id
        self.name = name  # as the model knows the function
        self.kind = kind
        self.details = opened
        self._arguments: list[str] = []

    def write(self, arguments: str) -> Json | None:
        """Take the next piece of the arguments; what of it is told."""
        self._arguments.append(arguments)
        return None

    def finish(self) -> Json | None:
        """The model has written all: what is still to be told."""
        return None

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments written so far are whole by themselves."""
        if not self._arguments or not self._arguments[-1].rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode(self.arguments)
        except msgspec.DecodeError:
            return False
        return True

    def shown(self) -> Json:
        return {"id": self.id, "type": self.kind, self.kind: self.details}


class FunctionCall(Call):
    def write(self, arguments: str) -> Json | None:
        super().write(arguments)
        return {"arguments": arguments}

    def shown(self) -> Json:
        self.details["arguments"] = self.arguments
        return super().shown()


class CodeCall(Call):
    """The code is its input; text and images that come of it are its outputs, in the order in
    which they came. All text is one output, as beneath a cell of a notebook."""

    def __init__(self, index: int, call_id: str, name: str, kind: str, opened: Json) -> None:
        super().__init__(index, call_id, name, kind, opened)
        self.is_over = False  # it was run
        self.has_news = False  # since it was last saved as a draft
        self._code = CodeArgument()
        self._outputs: list[Json] = []
        self._logs: list[str] = []
        self._logs_index = 0

    @property
    def code(self) -> str:
        return self._code.code

    @property
    def logs(self) -> str:
        return "".join(self._logs)

    def write(self, arguments: str) -> Json | None:
        super().write(arguments)
        return _input(self._code.feed(arguments))

    def finish(self) -> Json | None:
        return _input(self._code.end())

    def add_text(self, text: str) -> Json:
        """What is told of it."""
        if not self._logs:
            self._logs_index = len(self._outputs)
            self._outputs.append({})  # filled in when it is shown
        self._logs.append(text)
        self.has_news = True
        return _output(self._logs_index, {"type": "logs", "logs": text})

    def add_image(self, file_id: str) -> Json:
        self._outputs.append({"type": "image", "image": {"file_id": file_id}})
        self.has_news = True
        return _output(len(self._outputs) - 1, self._outputs[-1])

    def shown(self) -> Json:
        outputs = list(self._outputs)
        if self._logs:
            outputs[self._logs_index] = {"type": "logs", "logs": self.logs}
        self.details = {"input": self.code, "outputs": outputs}
        return super().shown()


def _input(code: str) -> Json | None:
    return {"input": code} if code else None


def _output(index: int, output: Json) -> Json:
    return {"outputs": [{"index": index} | output]}
