"""/ui/sign-in and /ui/sign-out"""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from threadmill.dashboard import session
from threadmill.dashboard.forms import read_form
from threadmill.dashboard.frame import show
from threadmill.dashboard.session import Attempts, Keys

router = APIRouter()

ADMIN_PAGE = "/ui/projects"


@router.get("/sign-in")
async def ask_for_key(request: Request) -> Response:
    keys: Keys = request.app.state.keys
    back = _back(request.query_params.get("back", ""))
    if not back.startswith(ADMIN_PAGE) and not await keys.are_demanded():
        return RedirectResponse("/ui/", 303)
    return _form(request, back=back)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client else ""
    form = await read_form(request)
    back = _back(form.get("back"))
    if not attempts.may_try(address):
        message = "Too many wrong keys came from your address. Wait five minutes."
        return _form(request, back=back, message=message, status=429)
    token = await session.sign_in(request, form.get("key").strip())
    if token is None:
        attempts.note_failure(address)
        message = "That key is not valid here."
        return _form(request, back=back, message=message, status=401)
    keys: Keys = request.app.state.keys
    is_admin = keys.is_admin(form.get("key").strip())
    answer = RedirectResponse(ADMIN_PAGE if is_admin else back, 303)
    session.remember(request, answer, token)
    return answer


@router.post("/sign-out")
async def sign_out(request: Request) -> Response:
    answer = RedirectResponse("/ui/sign-in", 303)
    await session.sign_out(request, answer)
    return answer


def back_to(path: str) -> str:
    return urlencode({"back": path})


def _back(path: str) -> str:
    """Where to go after signing in: nowhere but here."""
    is_ours = path.startswith("/ui/") and path.isprintable() and "\\" not in path
    return path if is_ours else "/ui/"


def _form(request: Request, *, back: str, status: int = 200, **values: Any) -> Response:
    return show(request, "sign_in.html", status=status, **{"message": None, "back": back} | values)
