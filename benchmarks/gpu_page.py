"""The chapter "On a GPU" of docs/benchmarks.md, from the JSON files of a run of `gpu.py`.

python benchmarks/gpu_page.py [DIR]        # DIR: the run's folder; default: benchmarks/gpu
"""

import sys
from pathlib import Path

from gpu_phases import ROOT
from gpu_targets import judge_run, phase_states, read_json

PAGE = ROOT / "docs" / "benchmarks.md"
HOME = ROOT / "benchmarks" / "gpu"
TITLE = "## On a GPU\n"
INTRO = """
`python benchmarks/gpu.py --minutes 8 --out DIR` proves and measures everything on a card in one command: values and
gradients against oracles, trainings, the loss, the step, feeding, evaluation, several cards. It installs nothing. Each
phase leaves JSON even if it is cut, and without a card every phase runs at toy size on the CPU.
`bash benchmarks/wheels.sh DIR` makes a folder of the packages that a machine without a network still lacks.
`python benchmarks/gpu_page.py DIR` writes this chapter from the JSON of a run.
"""


def describe_run(out: Path) -> str:
    """Return a sentence on the run: command, date, card, versions; or that there was none."""
    run = read_json(out / "gpu.json")
    if run is None or run["toy"]:
        return "No card was at hand yet: nothing here was run on one.\n"
    machine, versions = run["machine"], run["machine"]["versions"]
    cards = ", ".join(
        f"{c['name']} ({c['memory_gib']:g} GiB, compute capability {c['capability']})" for c in machine["cards"]
    )
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    return (
        f"`{run['command']}`, {run['date']}: {cards}, driver {machine['driver']}, {machine['cores']} cores of "
        f"{machine['processor']}, Python {machine['python']}, {named}.\n"
    )


def chapter(out: Path) -> str:
    """Return the whole chapter."""
    run = read_json(out / "gpu.json")
    if run is not None and run["toy"]:
        out = out / "nothing"  # figures of a CPU at toy size are not those of a card
    lines = ["| what | bound | measured | |", "|---|---|---|---|"]
    lines += [f"| {v.what} | {v.bound} | {v.figure} | {v.verdict} |" for v in judge_run(out)]
    ends = [f"{phase} ({state}: {'; '.join(bad)})" for phase, state, bad in phase_states(out) if bad]
    unfinished = f"\nNot finished: {', '.join(ends)}.\n" if ends else ""
    return TITLE + INTRO + "\n" + describe_run(out) + "\n" + "\n".join(lines) + "\n" + unfinished + "\n"


def replaced(page: str, text: str) -> str:
    """Return the page with its chapter replaced; a page without one gets it before the training step's."""
    if TITLE in page:
        start = page.index(TITLE)
        end = page.find("\n## ", start + 1)
        return page[:start] + text + ("" if end < 0 else page[end + 1 :])
    at = page.index("## Training step\n")
    return page[:at] + text + page[at:]


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HOME
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), chapter(out)), encoding="utf-8")


if __name__ == "__main__":
    main()
