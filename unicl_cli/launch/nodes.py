"""The rendezvous of a training on several nodes: torch elastic's, with the number that each node was given."""

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from unicl_cli.errors import UniclError, write_line
from unicl_cli.launch.plan import ATTEMPT, Nodes

MEET_SECONDS = 600
T = TypeVar("T")


class NumberedRendezvous(RendezvousHandler):
    """A rendezvous in which each node keeps its --node-rank and each round has its own number and store."""

    def __init__(self, inner: RendezvousHandler, nodes: Nodes, address: str, task: str) -> None:
        self.inner, self.nodes, self.address, self.task = inner, nodes, address, task
        self.server: Any = None
        self.rounds = 0

    def next_rendezvous(self) -> RendezvousInfo:
        return call_in_thread(self.meet)

    def meet(self) -> RendezvousInfo:
        """Wait for the other nodes; compare their ranks and recipes."""
        met = self.inner.next_rendezvous()
        store = PrefixStore("numbered", met.store)
        rank, numbers = self.nodes.rank, range(self.nodes.total)
        if store.add(str(rank), 1) > 1:
            raise UniclError(f"--node-rank {rank}: given to two nodes", f"number the nodes 0 to {self.nodes.total - 1}")
        store.set(f"task {rank}", self.task)
        if len({store.get(f"task {number}") for number in numbers}) > 1:
            raise UniclError(
                f"the {len(numbers)} nodes were given different recipes",
                "run the same command on each node; only --node-rank may differ",
            )
        if rank == 0:  # a new store: the entries of a failed round would mislead the next
            self.server = TCPStore(self.address, 0, is_master=True, wait_for_workers=False)
            store.set("round", str(self.rounds))
            self.rounds += 1
        port = self.server.port if rank == 0 else 0
        place = RendezvousStoreInfo.build(rank, store, self.address, server_port=port)
        os.environ[ATTEMPT] = store.get("round").decode()  # a node that returns takes the current one
        return RendezvousInfo(store, rank, met.world_size, place)

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return self.inner.get_backend()

    def is_closed(self) -> bool:
        return self.inner.is_closed()

    def set_closed(self) -> None:
        self.inner.set_closed()

    def num_nodes_waiting(self) -> int:
        return self.inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        return self.inner.get_run_id()

    def shutdown(self) -> bool:
        return self.inner.shutdown()


def call_in_thread(call: Callable[[], T]) -> T:
    """Return ``call()``, run in another thread: while torch waits in C++, this one could not handle a signal."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result()


def open_rendezvous(nodes: Nodes, task: str) -> NumberedRendezvous:
    """Open the rendezvous, which node 0 hosts; a single node uses a free port of its own.

    ``task`` is text that must be the same on each node.
    """
    host, _, port = (nodes.rendezvous or "localhost:0").rpartition(":")
    first = nodes.rank == 0
    if first and nodes.rendezvous:
        check_own_address(host.strip("[]"), int(port))
    address = host.strip("[]") if first else find_own_address(host.strip("[]"), int(port))
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=f"{host}:{port}",
        run_id="unicl",
        min_nodes=nodes.total,
        max_nodes=nodes.total,
        local_addr=address,  # no look-up of the machine's full name
        is_host=first,
        join_timeout=MEET_SECONDS,
        read_timeout=MEET_SECONDS,
    )
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # Numbered has its own
    try:
        backend, store = call_in_thread(partial(create_backend, parameters))
    except RendezvousError as error:
        raise UniclError(
            f"--rdzv {nodes.rendezvous}: {error.__cause__}", "give the address of node 0 and another port"
        ) from error
    return NumberedRendezvous(create_handler(store, backend, parameters), nodes, address, task)


def check_own_address(host: str, port: int) -> None:
    """Raise UniclError unless ``host`` is this machine and the port is free; torch would retry for ten minutes."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        with (
            socket.create_server(("", port), family=family, dualstack_ipv6=both) as server,
            socket.create_connection((host, port), timeout=10) as line,
        ):
            server.settimeout(5)
            while server.accept()[1][1] != line.getsockname()[1]:
                pass  # another node that checks whether this one is there
    except TimeoutError as error:
        raise UniclError(
            f"--rdzv {host}:{port}: not an address of this machine", "give an address of node 0, which is this machine"
        ) from error
    except OSError as error:
        raise UniclError(
            f"--rdzv {host}:{port}: {error.strerror or error}",
            "give an address of node 0, which is this machine, and a free port",
        ) from error


def find_own_address(host: str, port: int) -> str:
    """Wait until node 0 listens at ``host``; return the address of this machine that it sees."""
    end = time.monotonic() + MEET_SECONDS
    reason: OSError | None = None
    write_line(f"waiting for node 0 at {host}:{port}")
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=5) as line:
                return str(line.getsockname()[0])
        except OSError as error:
            reason = error
            time.sleep(0.5)
    raise UniclError(
        f"--rdzv {host}:{port}: node 0 did not answer within {MEET_SECONDS} s: {reason}", "start the command on node 0"
    )
