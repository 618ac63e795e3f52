"""The pictures in docs/screenshots, made from `threadmill demo --serve` in Chromium.

python tests/dashboard/screenshots.py [folder]
"""

import asyncio
import io
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
SIZE: Any = {"width": 1280, "height": 800}
COLOURS_MAX = 255
PICTURE_MAX_BYTES = 150_000
_COMMAND = [sys.executable, "-m", "threadmill", "demo", "--serve", "--port", "0"]


async def overview(page: Page) -> None:
    await page.goto("/ui/")


async def thread(page: Page) -> None:
    await _open(page, "/ui/threads?q=%22arrive+yesterday%22")
    await page.locator(".mark").first.focus()


async def run(page: Page) -> None:
    await _open(page, "/ui/threads?q=%22arrive+yesterday%22")
    await page.locator("a[href^='/ui/runs/']").first.click()
    await page.locator(".waterfall").first.wait_for()


async def playground(page: Page) -> None:
    """A question that the stand-in answers with a search."""
    await page.goto("/ui/playground")
    await page.locator("[name=assistant]").select_option(label="Support")
    await page.get_by_role("textbox", name="Message").fill("What about parcels to Switzerland?")
    await page.keyboard.press("Control+Enter")
    await page.get_by_text("To Switzerland we do not deliver").first.wait_for()


async def vector_store(page: Page) -> None:
    await page.goto("/ui/vector_stores")
    await page.get_by_role("link", name="Workshop manuals").click()
    await page.get_by_role("searchbox").first.fill("motor stops E07")
    await page.keyboard.press("Enter")
    await page.get_by_text("E07").first.wait_for()


PICTURES = {
    "overview": overview,
    "thread": thread,
    "run": run,
    "playground": playground,
    "vector-store": vector_store,
}


async def _open(page: Page, address: str) -> None:
    await page.goto(address)
    await page.locator("a.row").first.click()
    await page.locator("main h1").wait_for()


async def main(folder: Path) -> None:
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    async with _demo() as (address, key), async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        for scheme in ("light", "dark"):
            for name, take in PICTURES.items():
                picture = await _taken(browser, address, key, scheme, take)
                path = folder / f"{name}-{scheme}.png"
                await asyncio.to_thread(path.write_bytes, picture)
                print(f"{path.name}: {len(picture) / 1000:.0f} kB", flush=True)
        await browser.close()


async def _taken(browser: Browser, address: str, key: str, scheme: Any, take: Any) -> bytes:
    context = await browser.new_context(base_url=address, color_scheme=scheme, viewport=SIZE)
    page = await context.new_page()
    await page.goto("/ui/sign-in")
    await page.get_by_label("API key").fill(key)
    await page.keyboard.press("Enter")
    await page.wait_for_url(re.compile(r"/ui/(threads)?$"))
    await take(page)
    await page.wait_for_timeout(500)  # for what still moves
    taken = await page.screenshot()
    await context.close()
    return _small(taken)


def _small(picture: bytes) -> bytes:
    """With so few colours that all of them fit a palette; pages have no more."""
    written = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(COLOURS_MAX, dither=Image.Dither.NONE)
        few.save(written, "PNG", optimize=True)
    if written.tell() > PICTURE_MAX_BYTES:
        raise SystemExit(f"A picture has {written.tell()} bytes; at most {PICTURE_MAX_BYTES}.")
    return written.getvalue()


@asynccontextmanager
async def _demo() -> AsyncIterator[tuple[str, str]]:
    """The address and a key of one that is full."""
    process = await asyncio.create_subprocess_exec(*_COMMAND, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        said = ""
        while "It is all there" not in said:
            line = await process.stdout.readline()
            if not line:
                raise SystemExit(f"The demo has ended:\n{said}")
            said += line.decode()
        address, key = re.search(r"(http://\S+)/ui/", said), re.search(r"in with +(\S+)", said)
        assert address
        assert key
        yield address[1], key[1]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await process.wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
