"""The leading torchrun worker's side: gathers the other workers and runs jobs whose ranks are on all their hosts.

Every torchrun worker is the agent of one rank and forks it through a fork server of its own; the one with
RANK 0 is the command line process as well. So ranks are started, heard, blamed and ended as on one host.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from evenflow.errors import FaultError, InputError, WorkerLostError
from evenflow.launch.channel import Channel, Message
from evenflow.launch.client import ForkServer, shared_server
from evenflow.launch.group import Group, RunningRank
from evenflow.launch.pinning import cores_of_ranks
from evenflow.launch.process import LocalProcess, Process
from evenflow.launch.remote import Worker
from evenflow.launch.torchrun import Torchrun
from evenflow.launch.wire import watched
from evenflow.spec import Cluster, this_machine
from evenflow.spec.cluster import local_cluster
from evenflow.spec.gpus import visible_gpus

_GATHER_S = 120.0
_HELLO_BYTES = 64 * 1024  # held of a caller that has not said who it is
_MOST_CALLERS = 256  # of whom that is so: each has a descriptor of this process
_FACTS = {
    "rank": int,
    "host": str,
    "device": str,
    "gpus": int,
    "memory_bytes": int,
    "cores": int,
    "local_rank": int,
    "local_ranks": int,
}
_APPEARS_S = 5.0  # a network file system shows another host's new file only after a while


class SeveralHosts:
    """The workers of one torchrun, gathered by the one that leads; leaving it lets them go.

    Args:
        torchrun: what this worker was told.
        listener: a listening socket that the others are told of.
        secret: what they prove with that they are of this run.
        heard: called with a signal's number when a worker was asked to stop.
        tick: called now and then while waiting; what it raises ends the run.

    Raises:
        WorkerLostError: they did not all come in time.
    """

    def __init__(
        self,
        torchrun: Torchrun,
        listener: socket.socket,
        secret: str,
        heard: Callable[[int], None] = lambda _: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.torchrun = torchrun
        self.workers: dict[int, Worker] = {}
        self._address = str(listener.getsockname()[0])
        self._jobs = 0
        try:
            for worker in _gather(torchrun.ranks, listener, secret, heard, tick):
                self.workers[worker.rank] = worker
                worker.send({"kind": "welcome", "proof": proof(secret, "leader")})
        except BaseException as error:
            self._let_go(error)
            raise

    def __enter__(self) -> SeveralHosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go(error)

    @property
    def ranks(self) -> int:
        """One rank for each worker."""
        return self.torchrun.ranks

    def ranks_here(self, processes: int) -> int:
        """Those of this host's workers."""
        return min(self.torchrun.local_ranks, processes)

    def cluster(self, processes: int | None, threads: int | None) -> Cluster:
        """The devices of all hosts, with the memory of the host that has least for each rank.

        Raises:
            InputError: hosts compute on different devices.
        """
        own = local_cluster(self.torchrun.local_ranks, threads)
        hosts = [describe_host(self.torchrun), *(worker.facts for worker in self.workers.values())]
        here = _devices(hosts[0])
        for worker in self.workers.values():
            if _devices(worker.facts) != here:
                raise InputError(
                    f"ranks compute on {here} here and on {_devices(worker.facts)} on {worker.where}; equal hosts "
                    "would do (CUDA_VISIBLE_DEVICES chooses GPUs)"
                )
        memory = min(host["memory_bytes"] for host in hosts)
        # Each worker counts for its share of its host.
        slots = [(host["gpus"] or max(host["cores"] // own.threads, 1), host["local_ranks"]) for host in hosts]
        at_once = round(sum(min(1.0, slot / ranks) for slot, ranks in slots))
        device = replace(own.device, memory_bytes=memory)
        return replace(own, device=device, devices=processes or self.ranks, at_once=at_once)

    def hear(self) -> None:
        """Take in what workers say while no job runs.

        Raises:
            WorkerLostError: one of them is gone.
        """
        for worker in self.workers.values():
            worker.read()
            worker.check()

    @contextmanager
    def running(self, name: str, target: str, ranks: int, payload: dict[str, Any], threads: int) -> Iterator[Group]:
        """Ranks on all hosts, one for each worker; they meet through torchrun's store."""
        assert ranks == self.ranks, "one rank for each worker: checked before anything is planned"
        self._jobs += 1
        master = f"[{self.torchrun.master}]" if ":" in self.torchrun.master else self.torchrun.master
        meeting = f"tcp://{master}:{self.torchrun.port}/evenflow/{self.torchrun.run}/{self._jobs}"
        places = [[self._address, self.torchrun.local_rank]]
        places.extend([worker.address, worker.facts["local_rank"]] for _, worker in sorted(self.workers.items()))
        payload = {**payload, "rendezvous": meeting, "places": places}
        processes: dict[int, Process] = {
            rank: worker.start(target, payload, threads) for rank, worker in self.workers.items()
        }
        processes[0] = fork_own(shared_server(), self.torchrun, target, payload, threads)
        group = Group(name, [RunningRank(rank, processes[rank]) for rank in sorted(processes)])
        try:
            for worker in self.workers.values():
                worker.await_started()
            yield group
        finally:
            group.end()

    def check_shared(self, folder: Path, files: Sequence[Path]) -> None:
        """Refuse hosts that cannot write to `folder` or do not have `files` as they are here.

        A file of random name goes each way: ranks write their shards there and this process reads them.

        Raises:
            InputError: which host, and what it lacks.
        """
        nonce = f".evenflow-{secrets.token_hex(8)}"
        (folder / nonce).write_text(nonce)
        question = {
            "kind": "look",
            "folder": str(folder.resolve()),
            "nonce": nonce,
            "files": [[str(path.resolve()), path.stat().st_size] for path in files],
        }
        here = socket.gethostname()
        try:
            for worker in self.workers.values():
                answer = worker.answer(question)
                if not answer["shared"] or not _appears(folder / f"{nonce}-{worker.rank}"):
                    raise InputError(
                        f"--out {folder} is not shared: {worker.where} does not see there what {here} writes, or may "
                        "not write itself; a folder on a file system that all hosts have mounted would do"
                    )
                if answer["missing"]:
                    raise InputError(
                        f"{answer['missing']} is not on {worker.where}, or not of the size that it has on {here}; "
                        "a model on a file system that all hosts have mounted would do"
                    )
        finally:
            for left in folder.glob(f"{nonce}*"):
                left.unlink(missing_ok=True)

    def _let_go(self, error: BaseException | None) -> None:
        code = 0 if error is None else getattr(error, "exit_code", FaultError.exit_code)
        for worker in self.workers.values():
            worker.send({"kind": "bye", "code": code})
            worker.close()


def describe_host(torchrun: Torchrun) -> Message:
    """What a worker says of its host: what its ranks compute on, and what each of them has of it."""
    local = local_cluster(torchrun.local_ranks)
    return {
        "host": socket.gethostname(),
        "device": local.device.name,
        "gpus": len(visible_gpus()) if local.device.is_gpu else 0,
        "memory_bytes": local.device.memory_bytes,
        "cores": this_machine().cores,
        "local_rank": torchrun.local_rank,
        "local_ranks": torchrun.local_ranks,
    }


def _devices(facts: Message) -> str:
    return f"{facts['gpus']} {facts['device']}" if facts["gpus"] else str(facts["device"])


def fork_own(
    server: ForkServer, torchrun: Torchrun, target: str, payload: dict[str, Any], threads: int
) -> LocalProcess:
    """Fork a worker's own rank, on its slice of its host's cores."""
    slices = cores_of_ranks(torchrun.local_ranks, threads)
    own = None if slices is None else [slices[torchrun.local_rank]]
    return server.fork(target, [torchrun.rank], payload, own)[0]


def look(message: Message, rank: int) -> Message:
    """A worker's answer to `SeveralHosts.check_shared`: what of it is on this host."""
    folder, nonce = Path(message["folder"]), message["nonce"]
    shared = _appears(folder / nonce)
    if shared:
        try:
            (folder / f"{nonce}-{rank}").write_text(nonce)
        except OSError:
            shared = False
    missing = [name for name, size in message["files"] if not _is_of_size(Path(name), size)]
    return {"kind": "looked", "shared": shared, "missing": missing[0] if missing else ""}


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _APPEARS_S
    while time.monotonic() < deadline:
        try:
            if path.name in os.listdir(path.parent):  # noqa: PTH208 - reading the folder anew is what makes NFS look
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


def _is_of_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def proof(secret: str, who: str) -> str:
    """What `who` shows to have been told the secret, which nobody who hears it can show for another or learn it by."""
    return hmac.new(secret.encode(), who.encode(), "sha256").hexdigest()


def _gather(
    ranks: int, listener: socket.socket, secret: str, heard: Callable[[int], None], tick: Callable[[], None]
) -> Iterator[Worker]:
    """All other workers, as they come; a caller that does not know the secret is hung up on."""
    missing = set(range(1, ranks))
    callers: dict[Channel, str] = {}
    deadline = time.monotonic() + _GATHER_S
    while missing:
        tick()
        if time.monotonic() > deadline:
            names = ", ".join(str(rank) for rank in sorted(missing))
            raise WorkerLostError(
                f"waited {_GATHER_S:.0f} s for the torchrun workers with RANK {names} of {ranks}; none of them "
                f"called {listener.getsockname()[0]}. Did they start, and can their hosts reach that address?"
            )
        if select.select([listener], [], [], 0.02)[0]:
            _answer(listener, callers)
        for line in list(callers):
            hello = _hello(line, secret, missing)
            if hello is not None:
                missing.remove(hello["rank"])
                yield Worker(line, hello, callers.pop(line), heard)
            elif line.closed:
                del callers[line]
                line.close()
    for line in callers:
        line.close()


def _answer(listener: socket.socket, callers: dict[Channel, str]) -> None:
    """Take one more call; of too many that have not said who they are, hang up on the one that has waited longest."""
    try:
        connection, address = listener.accept()
    except OSError:  # it has hung up already, or there are no descriptors left: others may still come
        return
    callers[Channel(watched(connection))] = str(address[0])
    if len(callers) > _MOST_CALLERS:
        oldest = next(iter(callers))
        del callers[oldest]
        oldest.close()


def _hello(line: Channel, secret: str, missing: set[int]) -> Message | None:
    """What a caller said of itself; None while it has said nothing.

    Whoever says anything but a worker's hello is hung up on without a word: anybody can reach the port.
    """
    try:
        said = line.first_line(_HELLO_BYTES)
        if said is None:
            return None
        hello: object = json.loads(said)
    except (ValueError, RecursionError):
        hello = None
    if isinstance(hello, dict) and _is_of_run(hello, secret) and _is_whole(hello) and hello["rank"] in missing:
        return hello
    line.closed = True
    return None


def _is_of_run(hello: Message, secret: str) -> bool:
    said = hello.get("proof")
    # JSON can spell halves of characters, which are no text that could be encoded otherwise.
    return isinstance(said, str) and hmac.compare_digest(
        said.encode(errors="surrogatepass"), proof(secret, "worker").encode()
    )


def _is_whole(hello: Message) -> bool:
    """Whether it says all that `describe_host` does, and the rank."""
    return all(type(hello.get(name)) is kind for name, kind in _FACTS.items())
