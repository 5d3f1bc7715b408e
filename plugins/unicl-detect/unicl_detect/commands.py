"""The command `unicl detect` and its options; nothing heavy is imported before it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train detectors on trained image towers.")

Data = Annotated[
    Path,
    typer.Option(
        metavar="DIR|FILE", help="Folder in COCO's layout (annotations/instances_SPLIT.json), or such a file."
    ),
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="Split of the folder, such as train2017.")]
Images = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of the images. Default: the folder SPLIT next to it.")
]
Devices = Annotated[str, typer.Option(metavar="auto|N|cpu:N", help="All GPUs, N GPUs, or N processes on the CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run of unicl detect train.")]
Files = Annotated[list[str], typer.Argument(metavar="IMAGES", help="Images, folders, or quoted globs.")]
Size = Annotated[int, typer.Option(min=32, max=4096, metavar="N", help="Side of the images in pixels.")]


@app.command()
def train(
    settings: Annotated[
        str, typer.Argument(metavar="SETTINGS", help="A YAML file, or shipped: coco-1x, shapes, shapes-boxes.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change, such as lr=1e-4.")
    ] = None,
    data: Data = Path("data"),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Model whose image tower is used: a run, a checkpoint, open_clip:NAME/TAG, local-dir:PATH or "
            "hf-hub:ORG/REPO. Default: the run that finished last.",
        ),
    ] = None,
    split: Split = None,
    images: Images = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Directory of the run. Default: runs/detect-SETTINGS-HASH.")
    ] = None,
    devices: Devices = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Train nothing; show parameters and sizes.")] = False,
    as_json: Json = False,
) -> None:
    """Train Mask R-CNN on a model's image tower. After any interruption, run the same command again to continue."""
    from unicl_cli.api import (
        ModuleRun,
        StopFlag,
        check_settings,
        find_coco,
        is_peer,
        load_settings,
        locate_model,
        read_coco,
        run_on_devices,
    )
    from unicl_detect.options import COMMAND, FOLDER, DetectSettings
    from unicl_detect.output import describe_run, run_folder, show, write_notes

    chosen = load_settings(settings, DetectSettings, FOLDER, overrides or ())
    name = locate_model(model)
    found = read_coco(*find_coco(data, split, images, ("train",)), masks=not chosen.boxes_only)
    if dry_run:
        from unicl_detect.training import count_parameters

        write_notes(found.notes)
        sizes = {"images_of_data": len(found.images), "boxes": found.boxes}
        show({**sizes, **count_parameters(name, chosen, len(found.classes))}, as_json=as_json)
        return
    facts = describe_run(name, found, chosen)
    run = run_dir or run_folder(settings, facts)
    if check_settings(run, COMMAND, facts):
        write_notes([f"{run}: already finished"])
    else:
        stop = StopFlag()

        def work(accelerator: Any) -> None:
            from unicl_detect.training import train_detector

            write_notes([] if is_peer() else found.notes)  # once, not in the process that starts the workers, too
            place = ModuleRun(run, COMMAND, facts, chosen.save_every)
            train_detector(place, name, found, chosen, accelerator, stop)

        run_on_devices(devices, work, precision=chosen.precision, stop=stop, logs=run / "logs")
    if not is_peer():
        show({"schema": "unicl/detect-train/1", "run": str(run)}, as_json=as_json)


@app.command("eval")
def evaluate(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="As for train. Default: the data of the training.")
    ] = None,
    split: Split = None,
    images: Images = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Images that each process takes at once.")] = 4,
    devices: Devices = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the JSON here.")] = None,
    as_json: Json = False,
) -> None:
    """Measure box and mask AP by COCO's rules, overall, by size of object and per class."""
    from unicl_cli.api import find_coco, read_coco, read_settings, run_on_devices, write_document
    from unicl_detect.options import COMMAND
    from unicl_detect.output import find_data, show, write_notes

    facts = read_settings(run, COMMAND)
    place = find_data(run, facts, data)
    found = read_coco(*find_coco(place, split, images, ("val", "test")), masks=not facts["boxes_only"])

    def work(accelerator: Any) -> None:
        from unicl_coco.evaluation import evaluate as measure
        from unicl_coco.evaluation import show_figures

        from unicl_cli.api import rank
        from unicl_detect.training import load_detector

        detector, settings, _ = load_detector(run)
        detector.to(accelerator.device)
        own, masks = facts["classes"], not settings.boxes_only
        figures = measure(detector.detect, found, own, accelerator, masks=masks, batch=batch, quiet=as_json)
        if rank() == 0:
            write_notes([f"warning: {line}" for line in figures["warnings"]])
            document = {"schema": "unicl/detect-eval/1", "run": str(run), "data": str(found.file), **figures}
            if out is not None:
                write_document(out, document)
            if as_json:
                show(document, as_json=True)
            else:
                show_figures(document)

    run_on_devices(devices, work)


@app.command()
def shapes(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder to write.")],
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Training images.")] = 200,
    test: Annotated[int, typer.Option(min=1, metavar="N", help="Test images.")] = 100,
    size: Size = 96,
    most: Annotated[int, typer.Option(min=1, max=50, metavar="N", help="Maximum number of shapes in an image.")] = 4,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the scenes.")] = 0,
) -> None:
    """Write a small set in COCO's layout: scenes of drawn shapes with boxes and masks."""
    from unicl_cli.api import write_shape_scenes
    from unicl_detect.output import write_notes

    counts = {"train": count, "test": test}
    for split, number in write_shape_scenes(folder, counts, size, most, seed).items():
        write_notes([f"{folder}: {split}: {counts[split]:,} images, {number:,} shapes"])


@app.command()
def regions(
    run: Run,
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="JSON file to write.")],
    most: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Maximum number of regions per image.")] = 36,
) -> None:
    """Write the regions of images as JSON: boxes, and the distribution over the classes (for ViLBERT)."""
    from unicl_coco.images import read_images

    from unicl_cli.api import check_any_exists, write_document
    from unicl_detect.output import write_notes
    from unicl_detect.regions import find_regions
    from unicl_detect.training import load_detector

    check_any_exists(files, has_rows=False)
    detector, _, facts = load_detector(run)
    rows: list[dict[str, Any]] = []
    for path, image in read_images(files):
        sides = {"file": path, "width": image.shape[2], "height": image.shape[1]}
        rows.append({**sides, **find_regions(detector, image, most)})
    classes = ["", *facts["classes"]]
    write_document(out, {"schema": "unicl/regions/1", "run": str(run), "classes": classes, "images": rows})
    write_notes([f"{out}: {sum(len(row['boxes']) for row in rows):,} regions of {len(rows):,} images"])


@app.command()
def draw(
    run: Run,
    files: Files,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="PNG file to write.")],
    least: Annotated[float, typer.Option(min=0, max=1, metavar="P", help="Minimum score of a detection.")] = 0.5,
) -> None:
    """Draw the detections in images into one picture."""
    from torchvision.transforms.functional import to_pil_image
    from unicl_coco.images import draw_detections, read_images

    from unicl_cli.api import report_write_error, write_output
    from unicl_detect.training import load_detector

    images = [image for _, image in read_images(files)]
    detector, _, facts = load_detector(run)
    picture = to_pil_image(draw_detections(detector.detect, images, facts["classes"], least))
    with report_write_error("-o", out), write_output(out) as part:
        picture.quantize(128).save(part, "PNG", optimize=True)
