"""Install each file of a release into an empty environment and try it: try_release.py DIST [CONSTRAINTS]."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TRAIN = ("steps=4", "batch.size=16", "eval=[]", "data.train=[{corpus: corpus}]")


def try_file(file: Path, constraints: list[str]) -> None:
    """Install ``file`` (sdist or wheel) and run the main commands somewhere else."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        programs = home / "venv" / ("Scripts" if os.name == "nt" else "bin")
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *constraints, str(file)], check=True)
        for words in (
            ("--version",),
            ("recipes", "validate", "quickstart"),
            ("prepare", "--labels", "digits?limit=40", "--captions", "digits?limit=40", "-o", "corpus"),
            ("train", "quickstart", "--run-dir", "run", *TRAIN),
            ("eval", "run", "--data", "corpus"),
        ):
            print(f"{file.name}: unicl {' '.join(words)}", flush=True)
            subprocess.run([str(programs / "unicl"), *words], cwd=home, check=True)


def main(dist: str, *constraints: str) -> None:
    options = [word for file in constraints for word in ("--constraint", str(Path(file).resolve()))]
    for file in sorted(Path(dist).resolve().iterdir()):
        try_file(file, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
