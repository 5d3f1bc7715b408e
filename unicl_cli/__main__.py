"""Entry point of `python -m unicl_cli`, which is the same as `unicl`."""

import os
import sys


def forget_current_directory() -> None:
    """Drop the current directory, which `python -m` puts first on the path of modules: it holds data, not code."""
    try:
        here = os.getcwd()  # noqa: PTH109 - pathlib could be imported from there
    except OSError:  # it was deleted
        here = ""
    if not sys.flags.safe_path and sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    forget_current_directory()
    from unicl_cli.cli import main

    sys.exit(main())
