"""Brings htmx into the package: two scripts of others, which the repository does not keep.

They come from django-htmx, which carries them and is needed for building only. What they must be,
byte for byte, is written down here, so a package that was tampered with makes no build.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VENDOR = Path("src", "threadmill", "dashboard", "static", "vendor")

# By the name that each is given here: where it is in the package, and its SHA-256.
SCRIPTS = {
    "htmx.min.js": (
        "static/django_htmx/htmx-4.min.js",
        "28fae7bbe8e8142b702debb9d5234a9a436d9435a4b5165b195aa1a7ed840d25",
    ),
    "hx-sse.min.js": (
        "static/django_htmx/ext/hx-sse-4.min.js",
        "d3aeb71073552b253eaee99badebd60607003b1c25ac567ab88187d6887ab522",
    ),
}


class FetchScripts(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        copy_scripts(Path(self.root) / VENDOR)


def copy_scripts(to: Path) -> None:
    """Wheels that are built from a source distribution find them there already."""
    to.mkdir(parents=True, exist_ok=True)
    for name, (path, sha256) in SCRIPTS.items():
        if not _is_right(to / name, sha256):
            content = (_package() / path).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise RuntimeError(f"{path} of django-htmx is not the file that was chosen here")
            (to / name).write_bytes(content)


def _is_right(script: Path, sha256: str) -> bool:
    return script.exists() and hashlib.sha256(script.read_bytes()).hexdigest() == sha256


def _package() -> Path:
    # Not imported: that would want Django.
    found = importlib.util.find_spec("django_htmx")
    if found is None or found.origin is None:
        raise RuntimeError(
            "Building needs django-htmx, as [build-system] in pyproject.toml says. pip installs it"
            " by itself, unless it was told --no-build-isolation."
        )
    return Path(found.origin).parent
