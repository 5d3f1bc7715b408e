"""`unicl train RECIPE`: a new training, or the continuation of an interrupted one."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unicl_cli.commands import MODEL_FORMS, Devices, Json, Quiet, completion, examples
from unicl_cli.commands.output import check_encoding, print_path
from unicl_cli.errors import UniclError, is_quiet, write_line
from unicl_cli.storage.json_output import print_json

if TYPE_CHECKING:
    from unicl_cli.recipe.layers import Override
    from unicl_cli.recipe.schema import Recipe

app = typer.Typer(add_completion=False)
SHORT, PLAN, MACHINES = "Short forms of keys", "Plan only", "Several machines"


@app.command(
    epilog=examples(
        "unicl train recipe.yaml",
        "unicl train recipe.yaml --data corpus --size 64 --epochs 2 loss=clip",
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
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS",
            help="Corpus to train on, and to evaluate on (data.train, eval); may be repeated.",
            rich_help_panel=SHORT,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Side of the images in pixels (data.image_size).", rich_help_panel=SHORT),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="Length in passes over the data (epochs).", rich_help_panel=SHORT),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Rows of a step, over all processes (batch.size).", rich_help_panel=SHORT
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
            help="With --dry-run: show what fits a GPU with this memory, such as 24GiB or 24GB (24 means GiB).",
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
        typer.Option(min=0, metavar="N", help="Index of this machine, from 0.", rich_help_panel=MACHINES),
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
        typer.Option("--requeue", help="Requeue the SLURM job on SIGUSR1.", rich_help_panel=MACHINES),
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train from a recipe. After any interruption, run the same command again to continue."""
    del quiet  # its callback has acted
    from unicl_cli.launch.plan import parse_nodes
    from unicl_cli.launch.process import decide_launch, is_peer, is_worker, run_in_workers
    from unicl_cli.launch.stopping import StopFlag

    if not dry_run:
        check_no_plan_options(memory=memory is not None, resolved=resolved)
    stop = StopFlag()
    if not is_worker() or os.getpid() == 1:  # a worker that waits for its peers would not notice a signal
        stop.install()
    from unicl_cli.recipe.load import check_shares, load
    from unicl_cli.recipe.text import dump
    from unicl_cli.runs.folder import LOGS
    from unicl_cli.runs.place import check_run_dir, is_finished, run_path

    check_encoding(**{"--data": data, "--init": [init], "--run-dir": [run_dir]})
    changes = collect_changes(
        recipe,
        data or (),
        {"size": size, "epochs": epochs, "batch": batch},
        overrides or (),
        {"model.init": init, "run_dir": run_dir},
    )
    checked = load(recipe, changes)
    run = run_path(checked)
    check_run_dir(run)
    check_sources(checked, run)
    if not dry_run and is_finished(checked, run) and resume == "auto":
        print_run(run, is_other=is_other_process(node_rank, launch), as_json=json_, note="already finished")
        return
    if not dry_run and not is_worker():
        show_opening(checked, run)
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

    show_end(checked, run, time_work(work))
    print_run(run, is_other=is_peer(), as_json=json_)


def collect_changes(
    recipe: str,
    data: Sequence[str],
    short: Mapping[str, Any],
    overrides: Sequence[str],
    options: Mapping[str, str | None],
) -> list["Override"]:
    """Return all changes to a recipe: short forms, then KEY=VALUE, then ``options``, text as it is, by their key."""
    from unicl_cli.recipe.layers import Change
    from unicl_cli.recipe.short_forms import expand_short_options

    given = [Change(key, value) for key, value in options.items() if value is not None]
    return [*expand_short_options(recipe, data, **short), *overrides, *given]


def check_sources(recipe: "Recipe", run: Path) -> None:
    """Raise UniclError for a missing corpus, and for a missing model that a new run is to start from."""
    from unicl_cli.build.corpora import check_corpora
    from unicl_cli.core.checkpoint_files import list_folders
    from unicl_cli.recipe.stages import stages_of
    from unicl_cli.runs.folder import CHECKPOINTS, META, locate_model

    for stage, folder, _ in stages_of(recipe, run):
        if not (folder / META).is_file():
            check_corpora(stage)
    if recipe.model.init is not None and not list_folders(run / CHECKPOINTS):
        locate_model(recipe.model.init)


def is_other_process(node_rank: int | None, launch: str) -> bool:
    """Return True in a process other than the first one of a training, before it has joined the others."""
    from unicl_cli.launch.process import is_peer
    from unicl_cli.launch.slurm import is_other_task

    return bool(node_rank) or is_peer() or (launch != "local" and is_other_task(os.environ))


def show_opening(recipe: "Recipe", run: Path) -> None:
    """Show the run directory and the data before torch is imported, which takes seconds."""
    from unicl_cli.jobs.train.announce import opening_lines

    write_unless_quiet(opening_lines(recipe, run))


def time_work(work: Callable[[], None]) -> float:
    """Do the work of this process; return its seconds."""
    from unicl_cli.launch.process import run_and_report

    began = time.monotonic()
    run_and_report(work)
    return time.monotonic() - began


def show_end(recipe: "Recipe", run: Path, seconds: float) -> None:
    """Show the metrics of a finished run and the next command, from the first process."""
    from unicl_cli.jobs.train.announce import closing_lines
    from unicl_cli.launch.process import is_peer

    if not is_peer():
        write_unless_quiet(closing_lines(recipe, run, seconds))


def write_unless_quiet(lines: list[str]) -> None:
    """Write lines on stderr, unless --quiet was given."""
    if not is_quiet():
        for line in lines:
            write_line(line)


def check_no_plan_options(**given: bool) -> None:
    """Raise UniclError if an option is given that only a dry run takes."""
    for name, is_given in given.items():
        if is_given:
            raise UniclError(f"--{name} works only with --dry-run", f"add --dry-run, or remove --{name}")


def print_run(run: Path, *, is_other: bool, as_json: bool, note: str = "") -> None:
    """Print the directory of the run; a process other than the first (``is_other``) prints nothing."""
    if is_other:
        return
    if note:
        write_line(f"{run}: {note}")
    if as_json:
        print_json({"schema": "unicl/train/1", "run": str(run)})
    else:
        print_path(run)
