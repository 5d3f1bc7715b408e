"""Object stores for tests: one in this process, and a server of S3 on loopback."""

import datetime
import logging
import os
from pathlib import Path
from typing import ClassVar

import fsspec
from fsspec import AbstractFileSystem


class Store(AbstractFileSystem):
    """Objects in the memory of this process: no folders, and a listing that is remembered for ever, as s3fs does."""

    protocol = "store"
    objects: ClassVar[dict[str, tuple[bytes, float]]] = {}
    requests: ClassVar[list[tuple[str, str]]] = []
    clock: ClassVar[list[float]] = [1e9]
    """The store's own time, in seconds."""
    cachable = True

    def _names(self, path):
        return [name for name in self.objects if name.startswith(f"{path.rstrip('/')}/")]

    def _remembered(self, path):
        path = self._strip_protocol(path)
        if path not in self.dircache:
            if not path.startswith("bucket"):
                raise FileNotFoundError("The specified bucket does not exist")
            self.dircache[path] = sorted(self._names(path))
        return self.dircache[path]

    def info(self, path, **kwargs):
        path = self._strip_protocol(path)
        self.requests.append(("info", path))
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path][0]), "type": "file"}
        if not self._names(path):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path)
        self.requests.append(("list", path))
        start = len(path.rstrip("/")) + 1
        found = sorted({name[:start] + name[start:].split("/")[0] for name in self._remembered(path)})
        if not found:
            raise FileNotFoundError(path)
        return [self.info(name) for name in found] if detail else found

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **kwargs):
        self.requests.append(("list", path))
        found = {name: self.info(name) for name in self._remembered(path)}
        return found if detail else list(found)

    def invalidate_cache(self, path=None):
        self.dircache.clear()

    def modified(self, path):
        return datetime.datetime.fromtimestamp(self.objects[self._strip_protocol(path)][1], datetime.UTC)

    def cat_file(self, path, start=None, end=None, **kwargs):
        path = self._strip_protocol(path)
        self.requests.append(("get", path))
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path][0][start:end]

    def put_file(self, lpath, rpath, callback=None, mode="overwrite", **kwargs):
        path = self._strip_protocol(rpath)
        self.requests.append(("put", path))
        if not path.startswith("bucket/"):
            raise FileNotFoundError("The specified bucket does not exist")
        self.objects[path] = Path(lpath).read_bytes(), self.clock[0]

    def rm_file(self, path):
        path = self._strip_protocol(path)
        self.requests.append(("remove", path))
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)


fsspec.register_implementation("store", Store, clobber=True)


def files_in(folder):
    """Path below a folder of this machine -> bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def objects_in(path):
    """Name below a path of `Store` -> bytes."""
    return {name[len(path) + 1 :]: data for name, (data, _) in Store.objects.items() if name.startswith(f"{path}/")}


def serve_s3():
    """A server of S3 with the bucket `bucket`, and the variables that lead to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ |= variables
    from fsspec.core import url_to_fs

    url_to_fs("s3://bucket")[0].clear_instance_cache()  # an earlier server had another port
    url_to_fs("s3://bucket")[0].call_s3("create_bucket", Bucket="bucket")
    return server
