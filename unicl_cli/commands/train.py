"""`unicl train RECIPE`: train, or continue."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import Devices, Json, Quiet, completion
from unicl_cli.errors import UniclError, is_quiet

app = typer.Typer(add_completion=False)


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or the name of a shipped one (unicl recipes ls).",
            autocompletion=completion.recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Keys to change, e.g. optim.lr=1e-3.", autocompletion=completion.overrides
        ),
    ] = None,
    devices: Devices = "auto",
    run_dir: Annotated[str | None, typer.Option(help="Where to write; default runs/NAME-HASH.")] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or a checkpoint directory.")] = "auto",
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A model to start the weights from, in any form of --model.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run: steps, samples, parameters, memory.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --dry-run: what fits into a card of that memory, e.g. 24GiB or 24GB; a bare number is GiB.",
        ),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines; the same command on each.")] = None,
    node_rank: Annotated[int | None, typer.Option(min=0, help="Which of them this is, from 0.")] = None,
    rdzv: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where they meet: node 0 and a free port of it.")
    ] = None,
    launch: Annotated[
        str, typer.Option(help="auto, or against its guess: local (start here), worker (be one of many), slurm.")
    ] = "auto",
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often to start again from the last checkpoint if a process fails.")
    ] = 0,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Under SLURM: on SIGUSR1 put the job back into the queue.")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train from a recipe; the same command continues after any interruption."""
    del quiet  # its callback has seen it
    from unicl_cli.launch.plan import parse_nodes
    from unicl_cli.launch.process import decide_launch, is_peer, is_worker, run_and_report, run_in_workers
    from unicl_cli.launch.slurm import is_other_task
    from unicl_cli.launch.stopping import StopFlag

    if memory is not None and not dry_run:
        raise UniclError("--memory: says what would fit a card, and trains nothing", "give it with --dry-run")
    stop = StopFlag()
    if not is_worker() or os.getpid() == 1:  # a worker would not hear it while it waits for its peers
        stop.install()
    from unicl_cli.recipe.load import check_corpora, check_shares, load
    from unicl_cli.recipe.text import dump
    from unicl_cli.runs.folder import LOGS
    from unicl_cli.runs.place import is_finished, run_path

    changes = list(overrides or [])
    changes += [f"{key}={value}" for key, value in (("model.init", init), ("run_dir", run_dir)) if value is not None]
    checked = load(recipe, changes)
    check_corpora(checked)
    run = run_path(checked)
    if not dry_run and is_finished(checked, run) and resume == "auto":
        beside = bool(node_rank) or is_peer() or (launch != "local" and is_other_task(os.environ))
        show(run, beside=beside, as_json=json_, note="already finished")
        return
    way = decide_launch(devices, parse_nodes(nodes, node_rank, rdzv), launch)
    if dry_run:
        from unicl_cli.jobs.train.dry_run import dry_run as describe

        describe(checked, run, way.world, as_json=json_, card=memory)
        return
    check_shares(checked, way.world)
    stop.raise_if_set()
    task = dump(checked.model_copy(update={"run_dir": ""}))  # nodes may see the same folder at different places
    code = run_in_workers(way, sys.argv[1:], run / LOGS, stop, max_restarts, task)
    if code is not None:
        raise typer.Exit(code)

    def work() -> None:
        from unicl_cli.jobs.train.train import Request, train

        request = Request(devices, resume, is_quiet(), requeue)
        train(checked, run, request, stop, source=recipe, overrides=changes)

    run_and_report(work)
    show(run, beside=is_peer(), as_json=json_)


def show(run: Path, *, beside: bool, as_json: bool, note: str = "") -> None:
    """The result: where the run lies; nothing from a process ``beside`` the first one."""
    if beside:
        return
    if note:
        sys.stderr.write(f"{run}: {note}\n")
    typer.echo(json.dumps({"schema": "unicl/train/1", "run": str(run)}) if as_json else run)
