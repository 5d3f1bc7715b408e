"""Rows left out of a corpus, from the files in `rejects`: their reasons and hosts, and those that came back."""

from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unicl_cli.data.shard_checks import ShardRules, read_columns
from unicl_cli.errors import UniclError
from unicl_cli.formats import count_of
from unicl_cli.jobs.prepare.shards.download import host_of
from unicl_cli.jobs.prepare.shards.parts import PartMarker, read_in_order
from unicl_cli.jobs.prepare.shards.prepared_row import Rejected, read_rejects
from unicl_cli.jobs.prepare.shards.staged import NOT_COMPARED
from unicl_cli.jobs.prepare.shards.units import rejects_of
from unicl_cli.storage.text_hashes import hash_text, is_among

_WORST = 10
"""Hosts that a report names."""
_GAVE_IMAGE = frozenset(("duplicate", "near_duplicate", "in_other_corpus", "too_small", NOT_COMPARED))
"""Reasons of rows whose URL gave an image that was then left out."""


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
        listed = _read_rejects(out, marker)
        file = _rejects_of(out, marker)
        if strict and Counter(row.reason for row in listed) != marker.rejected:
            raise UniclError(
                f"{file}: does not list the rows that {marker.file} lacks", "prepare the list again into another -o"
            )
        rows |= {str(row.key): row for row in listed}
    return rows


class LeftOut:
    """The keys of the rows that a corpus lacks, and the hosts of their URLs: 12 bytes for each.

    ``lost`` counts the URLs of each host that gave no image, ``unwanted`` those whose image was left out.
    """

    def __init__(self, out: Path, markers: Sequence[PartMarker]) -> None:
        keys, hosts, back = array("Q"), array("q"), array("Q")
        names: dict[tuple[str, bool], int] = {}
        listed = read_in_order(out, lambda marker: _read_rejects(out, marker), markers)
        for marker, rejects in zip(markers, listed, strict=True):
            if marker.retried and marker.rows:
                back.extend(map(hash_text, _read_column(out, marker, "key")))
            for row in rejects:
                keys.append(hash_text(str(row.key)))
                of = (host_of(row.url) if row.url else "", row.reason in _GAVE_IMAGE)
                hosts.append(names.setdefault(of, len(names)))
        every = np.frombuffer(keys, np.uint64)[::-1]  # of a row that failed again, the last try counts
        self._keys, last = np.unique(every, return_index=True)
        is_lost = ~np.isin(self._keys, np.frombuffer(back, np.uint64))
        self._keys, last = self._keys[is_lost], last[is_lost]
        counts = np.bincount(np.frombuffer(hosts, np.int64)[::-1][last], minlength=len(names))
        self.lost, self.unwanted = Counter[str](), Counter[str]()
        for (host, gave_image), at in names.items():
            if host and counts[at]:
                (self.unwanted if gave_image else self.lost)[host] = int(counts[at])

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return is_among(hash_text(key), self._keys)


def _rejects_of(out: Path, marker: PartMarker) -> Path:
    return out / rejects_of(marker.split, Path(marker.file).stem)


def _read_rejects(out: Path, marker: PartMarker) -> list[Rejected]:
    return read_rejects(_rejects_of(out, marker)) if marker.rejected else []


def count_rejected(markers: Sequence[PartMarker]) -> dict[str, int]:
    """Return the rows that are left out, by reason, without those that were tried again."""
    rejected: Counter[str] = Counter()
    for marker in markers:
        rejected.update(marker.rejected)
        rejected.subtract(marker.retried)
    return dict(sorted((reason, count) for reason, count in rejected.items() if count))


def describe_downloads(out: Path, markers: Sequence[PartMarker], left_out: LeftOut) -> dict[str, Any]:
    """Return ``downloads``: the URLs that gave an image, and the hosts that lost most; nothing without URLs."""
    kept: Counter[str] = Counter()
    for urls in read_in_order(out, lambda marker: _read_column(out, marker, "url"), (m for m in markers if m.rows)):
        kept.update(host_of(url) for url in urls if url)
    images, lost = kept + left_out.unwanted, left_out.lost
    if not images and not lost:
        return {}
    worst = [
        {"host": host, "urls": images[host] + count, "images": images[host]} for host, count in lost.most_common(_WORST)
    ]
    counts = {"urls": images.total() + lost.total(), "images": images.total(), "kept": kept.total()}
    return {"downloads": {**counts, "hosts": len(images | lost), "worst": worst}}


def format_downloads(report: dict[str, Any]) -> list[str]:
    """Return the lines of the closing table about downloads."""
    found = report.get("downloads")
    if not found:
        return []
    share, hosts = found["images"] / found["urls"], count_of(found["hosts"], "host")
    lines = [f"downloaded {found['images']:,} of {found['urls']:,} URLs ({share:.1%}) from {hosts}"]
    worst = [f"{host['host']} {host['urls'] - host['images']:,} of {host['urls']:,}" for host in found["worst"][:3]]
    return [*lines, f"most lost: {', '.join(worst)}"] if worst else lines


def _read_column(out: Path, marker: PartMarker, name: str) -> list[Any]:
    return (
        read_columns(out / marker.file, marker.row_groups, [name], ShardRules(marker.kind, 0)).column(name).to_pylist()
    )
