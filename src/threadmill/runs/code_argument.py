"""The code that a model is writing, read out of the arguments of its call while they still come.

Arguments are JSON, `{"code": "..."}`, cut anywhere. What was read once is shown to the client at
once, so it is never taken back: it is this reading that is run, however the JSON ends.
"""

import re
from typing import Any

import orjson

_PARAMETER = "code"
_PLAIN = re.compile(r'[^"\\]+')
# One escape, or what may become one. A high surrogate waits for the low one that belongs to it.
_ESCAPE = re.compile(
    r"""\\(?:
        u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
        | u[0-9a-fA-F]{4}
        | [^u]
    )""",
    re.VERBOSE | re.DOTALL,
)
_BEGUN_ESCAPE = re.compile(
    r"""\\(?:
        u[0-9a-fA-F]{0,3}
        | u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?
    )?""",
    re.VERBOSE,
)
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNFIT = re.compile("[\0\ud800-\udfff]")  # neither Postgres nor UTF-8 has them


class CodeArgument:
    def __init__(self) -> None:
        self.is_done = False  # nothing that comes is looked at any more
        self._arguments: list[str] = []
        self._code: list[str] = []
        self._has_code = False
        self._rest = ""  # an escape that is not whole yet
        self._depth = 0  # of objects and arrays
        self._string: str | None = None  # what the open string is: "name", "code" or "other"
        self._name: list[str] = []  # the latest one on the outermost level
        self._wants_value = False  # behind a colon on that level

    def feed(self, piece: str) -> str:
        """Take the next piece of the arguments; what of the code is new."""
        self._arguments.append(piece)
        if self.is_done:
            return ""
        text, self._rest = self._rest + piece, ""
        before, at = len(self._code), 0
        while at < len(text) and not self.is_done:
            if self._string is None:
                self._structure(text[at])
                at += 1
            else:
                at = self._in_string(text, at)
        return "".join(self._code[before:])

    def end(self) -> str:
        """Nothing more comes: what of the code is still new. All of it where a model wrote it
        plainly instead of as JSON, or under another name."""
        if self._has_code:
            return ""
        self.is_done = self._has_code = True
        code = _UNFIT.sub("\ufffd", _otherwise_given("".join(self._arguments)))
        self._code.append(code)
        return code

    @property
    def code(self) -> str:
        return "".join(self._code)

    def _structure(self, sign: str) -> None:
        if sign == '"' and self._depth:
            self._open_string()
        elif sign in "{[" and (self._depth or sign == "{"):
            self._depth += 1
        elif sign in "}]" and self._depth:
            self._depth -= 1
            self.is_done = not self._depth
        elif not self._depth:
            self.is_done = not sign.isspace()  # no object: see `end`
        elif self._depth == 1 and sign in ":,":
            self._wants_value = sign == ":"

    def _open_string(self) -> None:
        self._string = "other"
        if self._depth == 1 and not self._wants_value:
            self._string, self._name = "name", []
        elif self._depth == 1 and "".join(self._name) == _PARAMETER:
            self._string, self._has_code = "code", True

    def _in_string(self, text: str, at: int) -> int:
        """Read on in the open string; the place up to which that was possible."""
        if plain := _PLAIN.match(text, at):
            self._take(plain[0])
            return plain.end()
        if text[at] == '"':
            self.is_done = self._string == "code"
            self._string = None
            return at + 1
        if _BEGUN_ESCAPE.fullmatch(text, at):
            self._rest = text[at:]
            return len(text)
        if escape := _ESCAPE.match(text, at):
            self._take(_unescaped(escape[0]))
            return escape.end()
        self._take(text[at])  # a backslash that nobody escaped
        return at + 1

    def _take(self, text: str) -> None:
        if self._string == "code":
            self._code.append(_UNFIT.sub("\ufffd", text))
        elif self._string == "name":
            self._name.append(text)


def _unescaped(escape: str) -> str:
    """What JSON does not know stays as it is: models forget to escape the \\d of a pattern."""
    if escape[1] != "u":
        return _SHORT.get(escape[1], escape)
    units = bytes.fromhex(escape.replace("\\u", ""))
    return units.decode("utf-16-be", "surrogatepass")


def _otherwise_given(arguments: str) -> str:
    try:
        given: Any = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        # The beginning of an object that was cut off is nobody's code.
        return "" if arguments.lstrip().startswith('{"') else arguments.strip()
    texts = (
        [one for one in given.values() if isinstance(one, str)] if isinstance(given, dict) else []
    )
    if isinstance(given, str):
        texts = [given]
    return texts[0] if len(texts) == 1 else ""
