"""`unicl prepare --engine ray` on a cluster of three nodes, whose workers, nodes and commands are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fsspec.core import url_to_fs
from image_server import serve_images
from object_store import files_in, serve_s3
from scenes import draw_scene, encode
from toys import put

from unicl_cli.cli import main
from unicl_cli.data.corpus import open_corpus
from unicl_cli.jobs.prepare.shards.prepared_row import PreparedRow
from unicl_cli.jobs.prepare.shards.staged import read_staged

SOURCES = ("--labels", "shapes?count=3000&test=100", "--captions", "shapes?count=1000&test=100", "--shard-mb", "1")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of a head without CPUs and two nodes of one CPU."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "240"}
    own = {"object_store_memory": 80_000_000, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
    found.own = own
    for _ in range(2):
        found.add_node(num_cpus=1, **own)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, hashes):
    out = tmp_path_factory.mktemp("local") / "c"
    assert main(["prepare", *SOURCES, "-o", str(out), "--workers", "1", "-q"]) == 0
    return hashes(out)


def begin(cluster, out, sources=SOURCES):
    argv = [sys.executable, "-m", "unicl_cli", "prepare", *sources, "-o", str(out), "--engine", "ray"]
    command = [*argv, "--cluster", cluster.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_written(process, out, units, files="*.json", seconds=240):
    """Wait until so many units have such a file, a marker; a command that ends before fails the test."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if len(list((out / "parts").glob(files))) >= units:
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(process.communicate()[1])


def workers_at_work():
    """The processes that run a unit: Ray names them by their task."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command.read_bytes().startswith(b"ray::run_on_node"):
                found.append(int(command.parent.name))
        except OSError:
            continue
    return found


def end(process):
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.mark.slow
def test_two_nodes_write_the_bytes_of_the_local_engine(cluster, whole, hashes, tmp_path):
    out = tmp_path / "c"
    assert "4,200 rows" in end(begin(cluster, out))
    assert hashes(out) == whole


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(cluster, whole, hashes, tmp_path):
    out = tmp_path / "c"
    process = begin(cluster, out)
    until_written(process, out, 1)
    killed = workers_at_work()
    os.kill(killed[0], signal.SIGKILL)
    end(process)
    assert hashes(out) == whole


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(cluster, whole, hashes, tmp_path):
    out = tmp_path / "c"
    process = begin(cluster, out)
    until_written(process, out, 2)
    process.kill()
    process.communicate()
    written = {file: file.stat().st_mtime_ns for file in (out / "parts").glob("*.json")}
    assert not (out / "manifest.json").exists()
    end(begin(cluster, out))
    assert hashes(out) == whole
    assert all(file.stat().st_mtime_ns == when for file, when in written.items())
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_a_lost_node_loses_and_doubles_nothing(cluster, whole, hashes, tmp_path):
    out = tmp_path / "c"
    node = cluster.add_node(num_cpus=1, **cluster.own)
    process = begin(cluster, out)
    until_written(process, out, 1)
    cluster.remove_node(node, allow_graceful=False)
    end(process)
    assert hashes(out) == whole


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on(cluster, tmp_path):
    out = tmp_path / "c"
    process = begin(cluster, out)
    until_written(process, out, 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "continue with: unicl prepare" in err
    assert not list(out.rglob("*.tmp"))


@pytest.mark.slow
def test_nodes_write_to_an_object_store_the_bytes_of_the_local_engine(cluster, tmp_path):
    """The nodes were started without the keys of the store: the command hands them over."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    assert main(["prepare", *SOURCES, "-o", str(tmp_path / "c"), "--workers", "1", "-q"]) == 0
    server = serve_s3()
    try:
        end(begin(cluster, "s3://bucket/c"))
        system, name = url_to_fs("s3://bucket/c")
        assert {found[len(name) + 1 :]: system.cat_file(found) for found in system.find(name)} == files_in(
            tmp_path / "c"
        )
    finally:
        server.stop()


@pytest.fixture
def downloads(tmp_path):
    """A list of URLs with copies of images and failures, of which 503 can pass, and files beside it; and its server."""
    with serve_images() as server:
        kinds = ["404" if n % 9 == 4 else "scene503" if n % 70 == 1 else "scene" for n in range(400)]
        addresses = [f"{server.url(kind, n % 67 + 100 * (n % 4))}?{n}" for n, kind in enumerate(kinds)]
        lines = [f"a scene {n}\t{address}\n" for n, address in enumerate(addresses)]
        (tmp_path / "list.tsv").write_text("".join(lines), encoding="utf-8")
        put(tmp_path / "f", {f"{split}/a/{n}.png": encode(draw_scene(n)) for split in ("train", "val") for n in (1, 5)})
        sources = ("--labels", str(tmp_path / "f"), "--captions", str(tmp_path / "list.tsv"), "--allow-private")
        yield server, (*sources, "--holdout", "0.1", "--shard-mb", "1")


@pytest.mark.slow
@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_downloads_that_are_compared_give_the_bytes_of_the_local_engine(cluster, downloads, hashes, tmp_path, dedup):
    """Also after a kill, with the rows that come back later, and of a shard that is lost. Nothing is asked twice."""
    server, sources = downloads
    local, out = tmp_path / "local/c", tmp_path / "c"
    words = (*sources, "--dedup", dedup)
    assert main(["prepare", *words, "-o", str(local), "--workers", "1", "-q"]) == 0
    server.asked.clear()
    server.delay = 0.2
    process = begin(cluster, out, words)
    until_written(process, out, 1, "*.arrow")
    process.kill()
    process.communicate()
    server.delay = 0
    assert not (out / "duplicates.json").exists()
    there = [row for file in (out / "parts").glob("*.arrow") for row in read_staged(file)]
    kept = [urlsplit(row.record["url"]) for row in there if isinstance(row, PreparedRow)]
    end(begin(cluster, out, words))
    assert kept
    assert {server.asked[f"{url.path}?{url.query}"] for url in kept} == {1}
    assert hashes(out) == hashes(local)
    assert not list(out.rglob("*.arrow"))
    server.is_well = True
    assert main(["prepare", *words, "-o", str(local), "--workers", "1", "-q", "--retry-failed"]) == 0
    end(begin(cluster, out, (*words, "--retry-failed")))
    next((out / "data/train").glob("list-captions-00000-*")).unlink()
    end(begin(cluster, out, words))
    assert hashes(out) == hashes(local)
    rejected = open_corpus(out).manifest.rejected
    assert rejected.keys() == {"http_404", "duplicate"} | ({"near_duplicate"} if dedup == "near" else set())
    assert main(["prepare", "--verify", "-o", str(out)]) == 0


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ([], 0, "is complete: nothing to do"),
        (["--labels", "nowhere"], 2, "nowhere"),
        (["--shard-mb", "2"], 2, "was started with another plan"),
        (["-o", "/dev/null"], 2, "/dev/null: is not a directory"),
    ],
)
def test_ray_is_not_started_without_a_shard_to_make(tmp_path, capsys, monkeypatch, change, code, said):
    pytest.importorskip("ray")

    def fail(*args):
        raise AssertionError("started")

    monkeypatch.setattr("unicl_cli.jobs.prepare.engines.ray.open_ray", fail)
    command = ["prepare", "--labels", "digits?limit=9", "--holdout", "0", "-o", str(tmp_path / "c")]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--engine", "ray", *change]) == code
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_no_cluster_is_one_line(tmp_path, capsys):
    pytest.importorskip("ray")
    words = [*SOURCES, "-o", str(tmp_path / "c"), "--engine", "ray", "--cluster", "127.0.0.1:9"]
    assert main(["prepare", *words]) == 2
    assert "--cluster 127.0.0.1:9" in capsys.readouterr().err


def test_engines_are_checked_before_work(tmp_path, capsys):
    for words, said in (
        (["--engine", "spark"], "--engine spark: not an engine"),
        (["--cluster", "auto"], "--cluster: is for Ray"),
        (["--engine", "ray", "--dry-run"], "--engine: is for writing a corpus"),
    ):
        assert main(["prepare", *SOURCES, "-o", str(tmp_path / "c"), *words]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_node_that_is_not_like_the_command_is_named(tmp_path):
    from unicl_cli.errors import UniclError
    from unicl_cli.jobs.prepare.engines.ray import Place, run_on_node
    from unicl_cli.jobs.prepare.shards.shards import VERSIONS
    from unicl_cli.jobs.prepare.shards.units import Unit, Work

    work = Work(Unit("a", "train", "a", "labels", 0, 1, 1), tmp_path, "digits", [], None, raw_text=False, gone={})
    for place, said in (
        (Place(str(tmp_path), {}, {**VERSIONS, "pillow": "1"}), "but this machine .*pillow 1"),
        (Place(str(tmp_path / "gone"), {}, VERSIONS), "does not see .*gone"),
        (Place(str(tmp_path), {}, VERSIONS), "does not see "),  # no plan in the folder of the corpus
    ):
        with pytest.raises(UniclError, match=f"Ray node .*{said}"):
            run_on_node(lambda *_: {}, work, place)
