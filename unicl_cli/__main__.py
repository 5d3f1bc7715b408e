"""Entry point of `python -m unicl_cli`, which is the same as `unicl`."""

import sys

from unicl_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
