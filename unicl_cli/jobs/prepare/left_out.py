"""Rows that a corpus lacks, from the files in `rejects`: why, where from, and which of them came back."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from unicl_cli.core.json_text import parse_json
from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.jobs.prepare.download import host_of
from unicl_cli.jobs.prepare.parts import PartMarker
from unicl_cli.jobs.prepare.shards import Rejected
from unicl_cli.jobs.prepare.units import rejects_of

_WORST = 10
"""Hosts that a report names."""


def read_left_out(out: Path, markers: Sequence[PartMarker], *, strict: bool = False) -> dict[str, Rejected]:
    """Return the rows that are left out, by key; ``markers`` are in the order of the units.

    A row that `--retry-failed` brought back is not among them, and one that failed again has its last reason.
    UniclError, if ``strict``, for a file that does not list the rows which its marker counts.
    """
    rows: dict[str, Rejected] = {}
    for marker in markers:
        if marker.retried and marker.rows:
            for key in _read_column(out, marker, "key"):
                rows.pop(key, None)
        file = out / rejects_of(marker.split, Path(marker.file).stem)
        listed = _read_lines(file) if marker.rejected and file.is_file() else []
        if strict and Counter(row.reason for row in listed) != marker.rejected:
            raise UniclError(
                f"{file}: does not list the rows that {marker.file} lacks", "prepare the list again into another -o"
            )
        rows |= {str(row.key): row for row in listed}
    return rows


def _read_lines(file: Path) -> list[Rejected]:
    """Return the rows of a file of rejects, without lines that somebody has edited."""
    found: list[Rejected] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError):
            found.append(Rejected(**parse_json(line)))
    return found


def count_rejected(markers: Sequence[PartMarker]) -> dict[str, int]:
    """Return the rows that are left out, by reason, without those that were tried again."""
    rejected: Counter[str] = Counter()
    for marker in markers:
        rejected.update(marker.rejected)
        rejected.subtract(marker.retried)
    return dict(sorted((reason, count) for reason, count in rejected.items() if count))


def describe_downloads(out: Path, markers: Sequence[PartMarker], left_out: dict[str, Rejected]) -> dict[str, Any]:
    """Return how many URLs gave an image, and the hosts that lost most, under ``downloads``; nothing without URLs."""
    kept: Counter[str] = Counter()
    for marker in markers:
        if marker.rows:
            kept.update(host_of(url) for url in _read_column(out, marker, "url") if url)
    lost = Counter(host_of(row.url) for row in left_out.values() if row.url)
    if not kept and not lost:
        return {}
    worst = [{"host": host, "urls": kept[host] + count, "kept": kept[host]} for host, count in lost.most_common(_WORST)]
    urls = kept.total() + lost.total()
    return {"downloads": {"urls": urls, "kept": kept.total(), "hosts": len(kept | lost), "worst": worst}}


def format_downloads(report: dict[str, Any]) -> list[str]:
    """Return the lines of the closing table about downloads."""
    found = report.get("downloads")
    if not found:
        return []
    share, hosts = found["kept"] / found["urls"], count_of(found["hosts"], "host")
    lines = [f"downloaded {found['kept']:,} of {found['urls']:,} URLs ({share:.1%}) from {hosts}"]
    worst = [f"{host['host']} {host['urls'] - host['kept']:,} of {host['urls']:,}" for host in found["worst"][:3]]
    return [*lines, f"most lost: {', '.join(worst)}"] if worst else lines


def _read_column(out: Path, marker: PartMarker, name: str) -> list[Any]:
    return (
        read_columns(out / marker.file, marker.row_groups, [name], ShardRules(marker.kind, 0)).column(name).to_pylist()
    )
