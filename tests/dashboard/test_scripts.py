"""The scripts of others: exactly those that were chosen, and small."""

import gzip
import hashlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import threadmill.dashboard
from dashboard.conftest import Desk

ROOT = Path(__file__).parents[2]
STATIC = Path(threadmill.dashboard.__file__).parent / "static"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installed_scripts_are_those_that_were_chosen(build: ModuleType) -> None:
    for name, (_, sha256) in build.SCRIPTS.items():
        script = STATIC / "vendor" / name
        assert script.exists(), "Type: pip install -e ."
        assert hashlib.sha256(script.read_bytes()).hexdigest() == sha256
    assert {file.name for file in (STATIC / "vendor").iterdir()} == set(build.SCRIPTS)


def test_another_file_makes_no_build(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "django_htmx"
    for path, _ in build.SCRIPTS.values():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text("alert(1)")
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="is not the file that was chosen"):
        build.copy_scripts(tmp_path / "vendor")
    assert list((tmp_path / "vendor").iterdir()) == []


def test_what_is_there_already_is_not_asked_for_again(build: ModuleType, tmp_path: Path) -> None:
    for file in (STATIC / "vendor").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    build.copy_scripts(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_all_scripts_are_small() -> None:
    scripts = [file.read_bytes() for file in STATIC.rglob("*.js")]
    assert sum(map(len, scripts)) <= 60_000
    assert sum(len(gzip.compress(script)) for script in scripts) <= 25_000
    assert (STATIC / "app.js").stat().st_size <= 12_000
    assert (STATIC / "playground.js").stat().st_size <= 12_000


async def test_the_styles_are_small_as_they_are_served(desk: Desk) -> None:
    html = await desk.page("/ui/")
    address = html.partition('<link rel="stylesheet" href="')[2].partition('"')[0]
    served = await (await desk.send("GET", address)).text()
    written = (STATIC / "app.css").read_text()
    assert len(served) <= 20_000
    assert "/*" not in served
    assert [served.count(sign) for sign in "{}"] == [written.count(sign) for sign in "{}"]
    # Where a space means something, it is there.
    for kept in (
        "100vh - 28px",
        ".fill rect + rect",
        ".list:not(.pick) :is(td,th)",
        "font:12px/1.45 var(",
    ):
        assert kept in served


def test_no_page_has_code_or_styles_of_its_own() -> None:
    for template in (STATIC.parent / "templates").iterdir():
        html = template.read_text()
        for forbidden in (
            " style=",
            "<style",
            " onclick",
            "hx-on",
            "js:",
            "| safe",
            "|safe",
            "//cdn",
        ):
            assert forbidden not in html, (template.name, forbidden)
        assert html.count("<script") == html.count('<script nonce="{{ nonce }}" src=')
