"""What a browser may do with a page, and who may send it forms."""

import re

import pytest
from playwright.async_api import async_playwright, expect
from pydantic import SecretStr

from conftest import Serve
from dashboard.conftest import CHROMIUM, OWN, Desk

POLICY = [
    "default-src 'none'",
    "script-src 'nonce-{nonce}'",
    "style-src 'self'",
    "img-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types htmx",
]


async def test_every_page_has_a_strict_policy(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    nonces = set()
    for path in ("/ui/threads", f"/ui/threads/{thread_id}", "/ui/sign-in", "/ui/nowhere"):
        answer = await desk.send("GET", path)
        policy = answer.headers["content-security-policy"]
        nonce = policy.partition("'nonce-")[2].partition("'")[0]
        assert policy.format() == "; ".join(POLICY).format(nonce=nonce)
        assert (await answer.text()).count(f'nonce="{nonce}"') == 3
        nonces.add(nonce)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
    assert len(nonces) == 4


async def test_the_api_has_no_such_headers(desk: Desk) -> None:
    answer = await desk.send("GET", "/v1/threads", headers={"Authorization": f"Bearer {desk.key}"})
    assert answer.status == 200
    assert "content-security-policy" not in answer.headers


async def test_scripts_are_kept_for_ever_under_names_that_change(desk: Desk) -> None:
    html = await desk.page("/ui/threads")
    address = html.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    answer = await desk.send("GET", address)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await desk.send("GET", "/ui/static/app.css")).status == 404
    assert (await desk.send("GET", "/ui/static/..%2f..%2fsite.py")).status == 404


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),  # another port of this machine: cookie and all
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "own"}, False),
        ({"Origin": "own"}, True),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Origin": "null"}, False),
        ({}, False),  # no browser, but the cookie of one
    ],
)
async def test_forms_are_taken_from_our_own_pages_only(
    desk: Desk, headers: dict[str, str], is_taken: bool
) -> None:
    thread_id = await desk.thread("Hello")
    sent = {name: desk.address if value == "own" else value for name, value in headers.items()}
    answer = await desk.send("POST", f"/ui/threads/{thread_id}/delete", headers=sent)
    assert answer.status == (303 if is_taken else 403)
    gone = await desk.send("GET", f"/ui/threads/{thread_id}")
    assert gone.status == (404 if is_taken else 200)


async def test_a_command_line_may_sign_in(desk: Desk) -> None:
    answer = await desk.send("POST", "/ui/sign-in", {"key": desk.key}, headers={}, token="")
    assert answer.status == 303


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("rebind.example", 421),
        ("rebind.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
    ],
)
async def test_a_server_of_this_machine_answers_to_its_names_only(
    desk: Desk, host: str, status: int
) -> None:
    assert (await desk.send("GET", "/ui/threads", headers={"Host": host})).status == status


async def test_a_form_has_a_limit(desk: Desk) -> None:
    thread_id = await desk.thread("Hello")
    for form in ({"key": "x" * 300_000}, [("key", "x")] * 600):
        answer = await desk.send("POST", f"/ui/threads/{thread_id}/metadata", form)
        assert answer.status in (400, 413)


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "utf-7"])
async def test_a_form_is_of_no_other_encoding(desk: Desk, charset: str) -> None:
    """With punycode these bytes take seconds; with the others they hold what is no text."""
    sent = "--x\r\nContent-Disposition: form-data; name=key\r\n\r\n{}\r\n--x--\r\n"
    kind = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    answer = await desk.send(
        "POST", "/ui/sign-in", sent.format("\\ud800+2AA-"), headers=OWN | kind, token=""
    )
    assert answer.status == 400


async def test_over_plain_http_from_another_machine_forms_are_taken(serve: Serve) -> None:
    """There a browser says of a form nothing but its origin. A name stands for that machine, for
    no browser trusts it as it does the addresses of its own."""
    if CHROMIUM is None:
        pytest.skip("There is no Chromium here: apt-get install chromium")
    host = "threadmill.example"
    async with (
        serve(allowed_hosts=[host], api_keys=[SecretStr("the-key")]) as server,
        async_playwright() as playwright,
    ):
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", f"--host-resolver-rules=MAP {host} 127.0.0.1"],
        )
        page = await browser.new_page(base_url=server.address.replace("127.0.0.1", host))
        await page.goto("/ui/threads")
        await page.get_by_label("API key").fill("the-key")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile("/ui/threads$"), timeout=30_000)
        await browser.close()
