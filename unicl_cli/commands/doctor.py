"""`unicl doctor`: checks of this machine, and a hint for each problem."""

import shutil
import textwrap
from itertools import zip_longest

import typer

from unicl_cli.commands import Json, examples
from unicl_cli.errors import escape_control, print_line, write_line
from unicl_cli.formats import count_of
from unicl_cli.storage.json_output import print_json

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("unicl doctor", "unicl doctor --json"))
def doctor(as_json: Json = False) -> None:
    """Check whether this machine can train. Changes nothing and does not use the network."""
    from unicl_cli.jobs.doctor import PROBLEM, run_checks

    checks = run_checks()
    problems = sum(check.state == PROBLEM for check in checks)
    if as_json:
        document = {"schema": "unicl/doctor/1", "ok": not problems, "checks": [check._asdict() for check in checks]}
        print_json(document, 1)
    else:
        indent = max(len(check.name) for check in checks) + 10
        columns = max(indent + 30, shutil.get_terminal_size().columns)
        for check in checks:
            lines = textwrap.wrap(escape_control(check.text), columns - indent)
            lines += textwrap.wrap(escape_control(check.hint), columns - indent)
            for lead, line in zip_longest([f"{check.state:<8}{check.name}"], lines, fillvalue=""):
                print_line(f"{lead:<{indent}}{line}")
    if problems:
        write_line(f"{count_of(problems, 'problem')}: training cannot work here")
        raise typer.Exit(1)
