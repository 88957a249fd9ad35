"""Where ranks run, behind one small interface: the same job on this host alone or on those that torchrun started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from evenflow.launch.client import shared_server
from evenflow.launch.group import Group
from evenflow.launch.pinning import cores_of_ranks
from evenflow.spec import Cluster
from evenflow.spec.cluster import local_cluster


class Launcher(Protocol):
    """Starts the ranks of a job."""

    @property
    def ranks(self) -> int | None:
        """How many ranks every job has, if that is given."""

    def ranks_here(self, processes: int) -> int:
        """How many of a job's processes run on this host."""

    def cluster(self, processes: int | None, threads: int | None) -> Cluster:
        """The devices that ranks have here; as `spec.cluster.local_cluster`."""

    def running(
        self, name: str, target: str, ranks: int, payload: dict[str, Any], threads: int
    ) -> AbstractContextManager[Group]:
        """Ranks that each call `target(rank, channel, payload)`; on leaving, whichever still run are ended.

        Args:
            name: what the job is, for messages.
            target: `module:function`.
            ranks: how many.
            payload: JSON for every rank. Added to it are `rendezvous`, where they meet, and `places`: each rank's host
                and its number among the ranks of that host.
            threads: compute threads of each, for pinning.
        """

    def check_shared(self, folder: Path, files: Sequence[Path]) -> None:
        """Refuse hosts that cannot write to `folder` or do not have `files` as they are here.

        Raises:
            InputError: which host, and what it lacks.
        """


class ThisHost:
    """All ranks on this host; they meet through a file."""

    ranks = None

    def ranks_here(self, processes: int) -> int:
        """All of them."""
        return processes

    def cluster(self, processes: int | None, threads: int | None) -> Cluster:
        """Slices of this host's cores."""
        return local_cluster(processes, threads)

    @contextmanager
    def running(self, name: str, target: str, ranks: int, payload: dict[str, Any], threads: int) -> Iterator[Group]:
        """Ranks forked by this process's fork server."""
        with tempfile.TemporaryDirectory(prefix="evenflow-") as meeting:
            places = [["", rank] for rank in range(ranks)]
            payload = {**payload, "rendezvous": f"{meeting}/rendezvous", "places": places}
            group = shared_server().start(name, target, ranks, payload, cores_of_ranks(ranks, threads))
            try:
                yield group
            finally:
                group.end()

    def check_shared(self, folder: Path, files: Sequence[Path]) -> None:
        """A host shares everything with itself."""
