"""`python -m bench`: measure, and print the table."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from bench import profiled, table
from bench.figures import FULL, QUICK, SCENES, Figure, Size
from bench.stage import open_stage


def main() -> int:
    options = _options()
    load, size = os.getloadavg()[0], QUICK if options.quick else FULL
    figures = uvloop.run(_measure(options.only or list(SCENES), size, options.profile))
    if options.profile is not None:
        profiled.show(options.profile)
        return 0
    printed = table.rendered(figures)
    print(f"{table.machine(load)}\n\n{printed}")
    if options.write:
        table.write(printed, table.machine(load))
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


async def _measure(names: list[str], size: Size, profile: Path | None) -> list[Figure]:
    figures: list[Figure] = []
    async with open_stage() as stage:
        stage.profile = profile
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for figure in await SCENES[name](stage, size):
                figures.append(replace(figure, waited_share=stage.waited_share))
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=SCENES, metavar="NAME", help=", ".join(SCENES)
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    parser.add_argument(
        "--profile",
        type=lambda path: Path(path).absolute(),
        metavar="FILE",
        help="sample what the server does, print where its CPU time goes, keep the stacks in FILE;"
        " needs one --only",
    )
    options = parser.parse_args()
    if options.profile and len(options.only or []) != 1:
        parser.error("--profile needs one --only")
    if options.write and (options.quick or options.only):
        parser.error("the table in the README is of a whole run")
    return options


if __name__ == "__main__":
    sys.exit(main())
