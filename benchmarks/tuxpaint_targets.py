"""The experiment on own texts with real images: stamps of Tux Paint with their category and their English caption.

    python benchmarks/tuxpaint_targets.py --out DIR --seeds 3 [--stamps FOLDER]

It needs the plugin unicl-tuxpaint and Debian's package `tuxpaint-stamps-default`. Runs that exist are kept.
"""

import argparse
from pathlib import Path

from experiment import run_unicl
from rich.console import Console
from targets import Arm, measure, tabulate

SHARES = (0.0, 0.5)
CHANGES = ("data.augment=basic",)
STAMPS = "/usr/share/tuxpaint/stamps"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--stamps", default=STAMPS)
    given = parser.parse_args()
    run_unicl("prepare", "--labels", f"tuxpaint?path={given.stamps}", "-o", str(given.out / "stamps"), "-q")
    arms = [
        Arm(
            "stamps",
            f"own_text {share:g}",
            "stamps",
            "stamps",
            changes=(f"loss.own_text={share}", "data.augment=basic"),
        )
        for share in SHARES
    ]
    results = {arm: [measure(arm, seed, given.out, given.steps) for seed in range(given.seeds)] for arm in arms}
    Console().print(tabulate("own-text", results, f"stamps: {given.seeds} seeds, {given.steps} steps"))


if __name__ == "__main__":
    main()
