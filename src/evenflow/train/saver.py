"""Saves a rank's state while training goes on: copied to host memory between two steps, written by a thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenflow.errors import FaultError, InputError
from evenflow.models import Cut, Stage
from evenflow.runtime import WEIGHT, Optimizer, Reductions, is_rounded, local
from evenflow.train.checkpoint import partial_folder, shard_file
from evenflow.train.copies import Copy
from evenflow.train.shards import Piece, WrittenFile, hash_tensor, read_pieces, saved_names, write_shard
from evenflow.units import format_bytes

_NICE = 5
_LAST_TRIES, _TRY_AGAIN_S = 3, 1.0


class Saver:
    """Writes one rank's shard of a checkpoint, one checkpoint at a time.

    Each weight is written once: by the first replica, and of tied copies by the embedding's rank. The other replicas
    take part all the same, since what they share out of the optimizer's state is gathered from all of them. Of a tensor
    that is cut over tp each process writes its part; one whose parts are not contiguous is gathered and written whole.

    Args:
        run: the run's folder.
        rank: the number of this shard among those of a checkpoint.
        stages: the rank's stages.
        optimizer: over their parameters.
        reductions: what gathers the state that replicas share out; None where there is nothing to share.
        writes: whether this process writes, or only gives what others write.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        stages: Sequence[Stage],
        optimizer: Optimizer,
        reductions: Reductions | None = None,
        writes: bool = True,
    ) -> None:
        self._run = run
        self._rank = rank
        self._stages = tuple(stages)
        self._optimizer = optimizer
        self._reductions = reductions
        self._copy = Copy() if writes else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save", initializer=_give_way)
        self._under_way: tuple[int, Future[WrittenFile | str]] | None = None

    @property
    def shard(self) -> str:
        """The name of its file in a checkpoint."""
        return shard_file(self._rank)

    @property
    def descriptor(self) -> int | None:
        """Of the file in memory that the state is copied to; None where another process writes it."""
        return self._copy.descriptor if self._copy else None

    def start(self, step: int) -> list[dict[str, Any]]:
        """Copy the state after `step`, and begin to write it; the save before has to be over, and told of.

        Returns:
            What is to be told by now: that there is no memory for it, or nothing.
        """
        state = self._state()
        if self._copy is None:
            return []
        try:
            self._copy.take(step, state)
        except OSError as error:
            return [self._report(step, f"{self.shard} cannot be copied to memory: {error.strerror}")]
        self._under_way = step, self._thread.submit(self._write, step, self._copy.write)
        return []

    def save_last(self, step: int) -> list[dict[str, Any]]:
        """Write the state after the last step, straight from where it is.

        Raises:
            FaultError: it cannot be written, after some tries; training cannot go on without, as before.
        """
        state = self._state()
        if self._copy is None:
            return []
        pieces = {name: _on_host(piece) for name, piece in state.items()}
        for number in range(_LAST_TRIES):
            if number:
                time.sleep(_TRY_AGAIN_S)
            written = self._write(step, lambda path: write_shard(path, pieces))
            if not isinstance(written, str):
                return [self._report(step, written, last=True)]
        needed = format_bytes(sum(piece.tensor.nbytes for piece in pieces.values()))
        raise FaultError(
            f"{written}, tried {_LAST_TRIES} times; with {needed} free there, and a disk that can be written, --resume "
            "goes on from the newest checkpoint"
        )

    def idle(self, wait_s: float) -> bool:
        """Whether the save before is over; waits for that a little."""
        if self._under_way is not None:
            wait([self._under_way[1]], wait_s)
        return self._under_way is None or self._under_way[1].done()

    def done(self) -> list[dict[str, Any]]:
        """What is to be told by now: of a save that was started, once it is on the disk or cannot be."""
        return self.finish() if self._under_way is not None and self._under_way[1].done() else []

    def finish(self) -> list[dict[str, Any]]:
        """As `done`, having waited."""
        if self._under_way is None:
            return []
        (step, future), self._under_way = self._under_way, None
        return [self._report(step, future.result())]

    def hashes(self) -> dict[str, str]:
        """A hash of each tensor of the state that this rank writes, as a whole; all processes have to ask at once.

        Equal states have equal hashes, however they lie over processes.
        """
        pieces = self._state(joined=True)
        return {name: hash_tensor(piece.tensor.cpu()) for name, piece in pieces.items()} if self._copy else {}

    def _state(self, joined: bool = False) -> dict[str, Piece]:
        """What this rank writes, or with `joined` whole tensors instead; all replicas have to ask for it at once."""
        updated, elsewhere = self._optimizer.moments(), frozenset[str]()
        kinds: tuple[str, ...] = self._optimizer.kinds
        if any(is_rounded(parameter) for stage in self._stages for parameter in stage.parameters()):
            # Weights that compute are roundings of the optimizer's, and follow from them.
            updated, kinds = {**updated, **self._optimizer.weights()}, (*kinds, WEIGHT)
        if self._reductions is not None:
            updated = self._reductions.gathered(updated, kinds)
            elsewhere = self._reductions.elsewhere
        weights = {f"{WEIGHT}/{name}": own.detach() for name, own in _own_tensors(self._stages).items()}
        state = {**weights, **updated}
        kept = {key: own for key, own in state.items() if key.partition("/")[2] not in elsewhere}
        pieces = {key: self._piece(key.partition("/")[2], own, joined) for key, own in kept.items()}
        return {key: piece for key, piece in pieces.items() if piece is not None}

    def _piece(self, name: str, own: Tensor, joined: bool) -> Piece | None:
        """What this process writes of a tensor; None where another one does."""
        sharing = next((stage.sharing for stage in self._stages), None)
        cut = _cuts(self._stages).get(name)
        if sharing is None or cut is None:
            return Piece.whole(local(own)) if sharing is None or sharing.index == 0 else None
        if cut.is_contiguous and not joined:
            return Piece(local(own), cut.offsets, cut.shape)
        whole = sharing.gathered(cut, own)
        return Piece.whole(whole) if sharing.index == 0 else None

    def _write(self, step: int, write: Callable[[Path], WrittenFile]) -> WrittenFile | str:
        """Write a shard; where the disk is full or fails nothing stays of it, and what is wrong is returned."""
        path = partial_folder(self._run, step) / self.shard
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return write(path)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return f"{path} cannot be written: {error.strerror or error}"

    @staticmethod
    def _report(step: int, written: WrittenFile | str, last: bool = False) -> dict[str, Any]:
        if isinstance(written, str):
            return {"kind": "saved", "step": step, "last": last, "why_not": written}
        return {"kind": "saved", "step": step, "last": last, "file": asdict(written)}


@torch.no_grad()
def read_state(folder: Path, step: int, stages: Sequence[Stage], optimizer: Optimizer) -> None:
    """Take these stages' weights and moments from whichever ranks saved them.

    Raises:
        InputError: a tensor is missing or misshapen, or a file unreadable.
    """
    saved, cuts = saved_names(folder), _cuts(stages)
    tensors = {f"{WEIGHT}/{name}": local(tensor.detach()) for name, tensor in _own_tensors(stages).items()}
    parameters = {f"{WEIGHT}/{name}" for stage in stages for name in stage.named_model_parameters()}
    masters = {key: tensors[key].float() for key in parameters if is_rounded(tensors[key])}
    moments: dict[str, Tensor] = {}
    for name, parameter in _own_tensors(stages).items():
        names = [f"{kind}/{name}" for kind in optimizer.kinds]
        if saved.issuperset(names):  # a parameter that never had a gradient has none, nor has a buffer
            moments |= {
                key: torch.empty_like(local(parameter), dtype=torch.float32, requires_grad=False) for key in names
            }
    if not moments and step:
        raise InputError(f"{folder} has no moments of these stages' parameters; another run's?")
    _read_parts(folder, {**tensors, **masters, **moments}, cuts)
    for key, master in masters.items():
        tensors[key].copy_(master)
    optimizer.set_weights(masters)
    optimizer.set_moments(moments, step)


def _read_parts(folder: Path, tensors: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> None:
    """Fill tensors, or the parts that this process holds of them; of parts apart the whole is read, one at a time."""
    wanted: dict[str, Piece] = {}
    for key, tensor in tensors.items():
        cut = cuts.get(key.partition("/")[2])
        if cut is not None and not cut.is_contiguous:
            whole = tensor.new_empty(cut.shape)
            read_pieces(folder, {key: Piece.whole(whole)})
            tensor.copy_(cut.take(whole))
        else:
            wanted[key] = Piece.whole(tensor) if cut is None else Piece(tensor, cut.offsets, cut.shape)
    read_pieces(folder, wanted)


def _cuts(stages: Sequence[Stage]) -> dict[str, Cut]:
    """This process's part of every parameter of these stages that is cut over tp."""
    return {name: cut for stage in stages if stage.sharing for name, cut in stage.sharing.cuts.items()}


def _own_tensors(stages: Sequence[Stage]) -> dict[str, Tensor]:
    """All parameters and saved buffers of one rank, by name."""
    return {
        name: tensor
        for stage in stages
        for name, tensor in (*stage.named_model_parameters().items(), *stage.named_model_buffers().items())
    }


def _on_host(piece: Piece) -> Piece:
    return Piece(piece.tensor.to("cpu"), piece.offsets, piece.shape)


def _give_way() -> None:
    """Let the threads that compute go first, where the system can tell threads apart (Linux)."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
