"""Which functions the model of a run is shown, and which of them are tools of our own."""

from typing import Any

import orjson

from threadmill.runs import code, file_search
from threadmill.store.rows import Run

Json = dict[str, Any]

_OWN = {file_search.NAME: file_search, code.NAME: code}


class Toolbox:
    def __init__(self, run: Run) -> None:
        self._run = run
        theirs = {tool["function"]["name"] for tool in run.tools if tool["type"] == "function"}
        self._own: dict[str, Json] = {}  # by the name under which the model sees it
        self._notes: dict[str, str] = {}
        for tool in run.tools:
            if tool["type"] in _OWN:
                name = tool["type"]
                self._own[name if name not in theirs else f"threadmill_{name}"] = tool

    def has(self, kind: str) -> bool:
        return any(tool["type"] == kind for tool in self._own.values())

    def note(self, kind: str, text: str) -> None:
        """Something for the model to know of our tool besides what is true of it in all runs."""
        self._notes[kind] = text

    def functions(self) -> list[Json]:
        """As the model is sent them."""
        shown = []
        for tool in self._run.tools:
            if tool["type"] == "function":
                function = {
                    name: value for name, value in tool["function"].items() if value is not None
                }
                if not function.get("strict"):
                    function.pop("strict", None)  # some servers refuse what they do not know
                shown.append({"type": "function", "function": function})
        for name, tool in self._own.items():
            function = {"name": name} | _OWN[tool["type"]].FUNCTION
            function["description"] += self._notes.get(tool["type"], "")
            shown.append({"type": "function", "function": function})
        return shown

    def choice(self, *, is_first_turn: bool) -> Any:
        """A forced tool holds for the first turn only, or the run would never come to an answer."""
        choice = self._run.tool_choice
        if choice in ("auto", "none"):
            return choice
        if not is_first_turn:
            return "auto"
        if choice == "required" or choice["type"] == "function":
            return choice
        [name] = [name for name, tool in self._own.items() if tool["type"] == choice["type"]]
        return {"type": "function", "function": {"name": name}}

    def kind(self, name: str) -> str:
        """What a call of this function is in a step: "function", or the type of our own tool."""
        own = self._own.get(name)
        return "function" if own is None else str(own["type"])

    def opened(self, name: str) -> Json:
        """What a step shows of a call before the model has written its arguments."""
        own = self._own.get(name)
        if own is None:
            return {"name": name, "arguments": "", "output": None}
        opened: Json = _OWN[own["type"]].opened(own)
        return opened

    def options(self, name: str) -> Json:
        own = self._own[name]
        options: Json = own.get(own["type"]) or {}
        return options

    def text(self) -> str:
        """All that the definitions add to a prompt, to count its tokens by."""
        functions = self.functions()
        return orjson.dumps(functions).decode() if functions else ""
