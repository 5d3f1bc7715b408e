"""`unicl doctor`: checks of this machine, and a hint for each problem."""

import json
import shutil
import sys
import textwrap

import typer

from unicl_cli.commands import Json, examples
from unicl_cli.formats import count_of

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("unicl doctor", "unicl doctor --json"))
def doctor(as_json: Json = False) -> None:
    """Check whether this machine can train. Changes nothing and does not use the network."""
    from unicl_cli.jobs.doctor import PROBLEM, run_checks

    checks = run_checks()
    problems = sum(check.state == PROBLEM for check in checks)
    if as_json:
        document = {"schema": "unicl/doctor/1", "ok": not problems, "checks": [check._asdict() for check in checks]}
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
    else:
        indent = max(len(check.name) for check in checks) + 10
        columns = max(indent + 30, shutil.get_terminal_size().columns)
        for check in checks:
            lead = f"{check.state:<8}{check.name:<{indent - 8}}"
            typer.echo(textwrap.fill(check.text, columns, initial_indent=lead, subsequent_indent=" " * indent))
            if check.hint:
                typer.echo(textwrap.indent(textwrap.fill(check.hint, columns - indent), " " * indent))
    if problems:
        sys.stderr.write(f"{count_of(problems, 'problem')}: training cannot work here\n")
        raise typer.Exit(1)
