"""axe-core, which finds what people with disabilities cannot use: fetched from npm for the tests,
not kept in the repository.

    python tests/dashboard/axe.py       # what `make test` does first
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "4.14.1"
# Of the package, as npm has it: another one is not unpacked.
INTEGRITY = (
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37Og"
    "udVGtQ=="
)
SCRIPT = Path(__file__).parents[2] / "build" / f"axe-core-{VERSION}" / "axe.min.js"


def fetch() -> str | None:
    """Have the script there; else say why it is not."""
    if SCRIPT.exists():
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "There is no npm here, from which axe-core comes."
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            [npm, "pack", "--silent", f"axe-core@{VERSION}"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if packed.returncode:
            return f"npm gave no axe-core: {packed.stderr[-500:]}"
        package = Path(folder, packed.stdout.split()[-1])
        found = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
        if f"sha512-{found}" != INTEGRITY:
            return f"npm gave another axe-core {VERSION} than the one that was chosen."
        with tarfile.open(package) as archive:
            script = archive.extractfile("package/axe.min.js")
            assert script is not None
            SCRIPT.parent.mkdir(parents=True, exist_ok=True)
            written = SCRIPT.with_suffix(".part")
            written.write_bytes(script.read())
            written.replace(SCRIPT)
    return None


if __name__ == "__main__":
    fault = fetch()
    if fault is not None:
        print(fault, file=sys.stderr)
        sys.exit(1 if os.environ.get("CI") else 0)
