"""The experiments of `docs/systems.md`: the field's other systems on one core, with the same data and evaluation.

    python benchmarks/systems.py --out DIR --seeds 3 [NAME …]

Each experiment is `system_NAME.py` beside this file: ``run(out, seeds)`` trains its arms, keeps a JSON of each run that
is finished, and returns its tables. Runs that exist are kept.
"""

import argparse
from importlib import import_module
from pathlib import Path
from time import perf_counter

from rich.console import Console

EXPERIMENTS = ("objectives", "simclr", "first_tries", "imagebind", "vilbert", "detect")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", choices=[[], *EXPERIMENTS], default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    for name in options.experiments or EXPERIMENTS:
        begun = perf_counter()
        for table in import_module(f"system_{name}").run(options.out / name, options.seeds):
            console.print(table)
        console.print(f"{name}: {options.seeds} seeds, {perf_counter() - begun:,.0f} s")


if __name__ == "__main__":
    main()
