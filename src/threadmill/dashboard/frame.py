"""From what a page shows to HTML: one environment of templates, in which every value is escaped."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from threadmill.dashboard import attributes, functions, program
from threadmill.dashboard.assets import Assets
from threadmill.dashboard.session import Administrator

_SHOWN_MAX_CHARACTERS = 64 * 1024  # of one block; the rest is behind its link

# Name, address, the key behind g, and what else lies in that section.
SECTIONS = (
    ("Overview", "/ui/", "o", ""),
    ("Threads", "/ui/threads", "t", "/ui/runs"),
    ("Assistants", "/ui/assistants", "a", ""),
    ("Playground", "/ui/playground", "p", ""),
    ("Vector stores", "/ui/vector_stores", "v", ""),
    ("Files", "/ui/files", "f", ""),
    ("Usage", "/ui/usage", "u", ""),
    ("Keys", "/ui/keys", "k", ""),
    ("Health", "/ui/health", "h", ""),
)


_ADMIN_SECTIONS = (("Projects", "/ui/projects", "p", ""),)


class Frame:
    def __init__(self, assets: Assets) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,  # or each part of a page looks for its file again
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["asset"] = assets.address
        self._templates.filters |= {
            "ago": _ago,
            "until": _until,
            "duration": _duration,
            "count": _count,
            "dollars": _dollars,
            "size": _size,
            "json": _json,
            "cut": _cut,
            "example": functions.example,
            "attribute": attributes.write,
            "python": program.python,
            "javascript": program.javascript,
            "shell": program.shell,
        }

    def page(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        viewer = getattr(request.state, "viewer", None)
        is_admin = isinstance(viewer, Administrator)
        html = self._templates.get_template(template).render(
            nonce=request.state.nonce,
            viewer=viewer,
            is_admin=is_admin,
            sections=_ADMIN_SECTIONS if is_admin else SECTIONS,
            path=request.url.path,
            is_for_part="hx-request" in request.headers,
            **values,
        )
        return HTMLResponse(html, status)

    def part(self, template: str, **values: Any) -> str:
        """Of a page, for whoever looks at it."""
        return self._templates.get_template(template).render(**values)


def show(request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    frame: Frame = request.app.state.frame
    return frame.page(request, template, status=status, **values)


def _ago(at: int | float | None) -> Markup:
    """How long ago, with the exact time where one points at it."""
    if at is None:
        return Markup("")
    exact = datetime.fromtimestamp(at, UTC)
    return _time(exact, _since(at, exact))


def _until(at: int) -> Markup:
    left_s = at - time.time()
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    told = next((f"in {left_s / unit:.0f} {name}" for unit, name in units if left_s >= unit), "now")
    return _time(datetime.fromtimestamp(at, UTC), told)


def _time(exact: datetime, told: str) -> Markup:
    """Nothing in it comes from outside, so nothing is escaped: a page has a hundred of them."""
    day, _, of_day = exact.isoformat(" ", "seconds").removesuffix("+00:00").partition(" ")
    return Markup(f'<time datetime="{day}T{of_day}+00:00" title="{day} {of_day} UTC">{told}</time>')


def _since(at: float, exact: datetime) -> str:
    passed = max(time.time() - at, 0)
    if passed < 60:
        return "just now"
    if passed < 3600:
        return f"{passed // 60:.0f} min ago"
    if passed < 86400:
        return f"{passed // 3600:.0f} h ago"
    if passed < 30 * 86400:
        return f"{passed // 86400:.0f} d ago"
    return f"{exact:%Y-%m-%d}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.2g}"


def _size(size_bytes: int) -> str:
    size: float = size_bytes
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_MAX_CHARACTERS:
        return text
    return (
        f"{text[:_SHOWN_MAX_CHARACTERS]}\n… {len(text) - _SHOWN_MAX_CHARACTERS:,} characters more"
    )
