"""Notices an outer torchrun by its environment, so that a run over several hosts is never taken for one on this host.

The names are torchrun's own (torch.distributed.run, "Environment Variables"). Another launcher that sets all
of them does as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evenflow.errors import InputError

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_RUN_ID = "TORCHELASTIC_RUN_ID"
_LAST_PORT = 65535
_MOST_DIGITS = 9  # no count of ranks and no port has more


@dataclass(frozen=True, slots=True)
class Torchrun:
    """What torchrun told this worker.

    Attributes:
        rank: this worker's rank.
        ranks: how many workers there are on all hosts.
        local_rank: this worker among those of its host.
        local_ranks: how many its host has.
        master: the host name or address of the store that all workers can reach.
        port: the store's port.
        serves_store: whether this worker has to serve it (else torchrun does).
        run: the name of torchrun's job in that store, the same whenever it starts the workers again.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    master: str
    port: int
    serves_store: bool
    run: str

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that plans, watches and writes."""
        return self.rank == 0


def notice_torchrun(environment: Mapping[str, str]) -> Torchrun | None:
    """What torchrun has told this process; None where there is no torchrun.

    Raises:
        InputError: some of its variables are set and others are not, or one is no number.
    """
    found = [name for name in (*_NEEDED, _RUN_ID) if environment.get(name)]
    if not found:
        return None
    missing = [name for name in _NEEDED if name not in found]
    if missing:
        raise InputError(
            f"the environment is half of torchrun's: {', '.join(found)} set, {', '.join(missing)} missing; torchrun "
            f"sets all of them, and without {', '.join(found)} the run is on this host alone"
        )
    numbers = {name: _number(environment, name) for name in _NEEDED if name != "MASTER_ADDR"}
    if not 1 <= numbers["MASTER_PORT"] <= _LAST_PORT:
        raise InputError(
            f"MASTER_PORT is {environment['MASTER_PORT']} in the environment; ports are 1 to {_LAST_PORT}, and "
            "torchrun sets one that all hosts can reach"
        )
    rank, ranks = numbers["RANK"], numbers["WORLD_SIZE"]
    local_rank, local_ranks = numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"]
    if not (rank < ranks and local_rank < local_ranks <= ranks):
        raise InputError(
            f"the environment contradicts itself: RANK {rank} of WORLD_SIZE {ranks}, LOCAL_RANK {local_rank} of "
            f"LOCAL_WORLD_SIZE {local_ranks}; torchrun sets all four"
        )
    return Torchrun(
        rank,
        ranks,
        local_rank,
        local_ranks,
        environment["MASTER_ADDR"],
        numbers["MASTER_PORT"],
        serves_store=rank == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        run=environment.get(_RUN_ID) or "run",
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise InputError(f"{name} is {text!r} in the environment, not a whole number; torchrun sets it")
    return int(text)
