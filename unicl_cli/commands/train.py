"""`unicl train RECIPE`: a new training, or the rest of an interrupted one."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from unicl_cli.commands import MODEL_FORMS, Devices, Json, Quiet, completion, examples
from unicl_cli.errors import UniclError, is_quiet

app = typer.Typer(add_completion=False)
PLAN, MACHINES = "Plan only", "Several machines"


@app.command(
    epilog=examples(
        "unicl train recipe.yaml",
        "unicl train recipe.yaml optim.lr=1e-4 loss=clip --run-dir runs/clip",
        "unicl train recipe.yaml --dry-run --memory 24GiB",
    )
)
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or the name of a shipped recipe (unicl recipes ls).",
            autocompletion=completion.complete_recipes,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Keys to change, such as optim.lr=1e-3.",
            autocompletion=completion.complete_overrides,
        ),
    ] = None,
    devices: Devices = "auto",
    run_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Directory of the run. Default: runs/NAME-HASH.")
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            metavar="auto|never|DIR",
            help="Continue from the newest checkpoint (auto) or from this one (DIR), or start at step 0 (never).",
        ),
    ] = "auto",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help=f"Start from the weights of a model. {MODEL_FORMS}.",
            autocompletion=completion.complete_runs,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Train nothing; show steps, samples, parameters and memory.", rich_help_panel=PLAN
        ),
    ] = False,
    resolved: Annotated[
        bool,
        typer.Option("--resolved", help="With --dry-run: print every key of the recipe, too.", rich_help_panel=PLAN),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --dry-run: show what fits a card of this memory, such as 24GiB or 24GB (24 means GiB).",
            rich_help_panel=PLAN,
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of machines; run the same command on each.",
            rich_help_panel=MACHINES,
        ),
    ] = None,
    node_rank: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Number of this machine, from 0.", rich_help_panel=MACHINES),
    ] = None,
    rdzv: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Rendezvous address: node 0 and a free port.", rich_help_panel=MACHINES),
    ] = None,
    launch: Annotated[
        str,
        typer.Option(
            metavar="auto|local|worker|slurm",
            help="How processes start: by what the environment shows (auto), here (local), by another launcher "
            "(worker), or by srun (slurm).",
            rich_help_panel=MACHINES,
            autocompletion=completion.one_of("auto", "local", "worker", "slurm"),
        ),
    ] = "auto",
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Restarts from the last checkpoint after a process fails.",
            rich_help_panel=MACHINES,
        ),
    ] = 0,
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="Put the SLURM job back into the queue on SIGUSR1.", rich_help_panel=MACHINES),
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train from a recipe. After any interruption, run the same command again to continue."""
    del quiet  # its callback has acted
    from unicl_cli.launch.plan import parse_nodes
    from unicl_cli.launch.process import decide_launch, is_peer, is_worker, run_and_report, run_in_workers
    from unicl_cli.launch.slurm import is_other_task
    from unicl_cli.launch.stopping import StopFlag

    if not dry_run:
        check_no_plan_options(memory=memory is not None, resolved=resolved)
    stop = StopFlag()
    if not is_worker() or os.getpid() == 1:  # a worker that waits for its peers would not notice a signal
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
        print_run(run, beside=beside, as_json=json_, note="already finished")
        return
    way = decide_launch(devices, parse_nodes(nodes, node_rank, rdzv), launch)
    if dry_run:
        from unicl_cli.jobs.train.dry_run import dry_run as describe

        describe(checked, run, way.world, as_json=json_, card=memory, resolved=resolved)
        return
    check_shares(checked, way.world)
    stop.raise_if_set()
    task = dump(checked.model_copy(update={"run_dir": ""}))  # nodes may mount the same folder at different paths
    code = run_in_workers(way, sys.argv[1:], run / LOGS, stop, max_restarts, task)
    if code is not None:
        raise typer.Exit(code)

    def work() -> None:
        from unicl_cli.jobs.train.train import TrainRequest, train

        request = TrainRequest(devices, resume, is_quiet(), requeue)
        train(checked, run, request, stop, source=recipe, overrides=changes)

    run_and_report(work)
    print_run(run, beside=is_peer(), as_json=json_)


def check_no_plan_options(**given: bool) -> None:
    """Raise UniclError if an option is given that only a dry run takes."""
    for name, is_given in given.items():
        if is_given:
            raise UniclError(f"--{name} works only with --dry-run", f"add --dry-run, or remove --{name}")


def print_run(run: Path, *, beside: bool, as_json: bool, note: str = "") -> None:
    """Print the directory of the run; a process ``beside`` the first one prints nothing."""
    if beside:
        return
    if note:
        sys.stderr.write(f"{run}: {note}\n")
    typer.echo(json.dumps({"schema": "unicl/train/1", "run": str(run)}) if as_json else run)
