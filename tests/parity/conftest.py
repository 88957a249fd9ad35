"""Runs a split model in forked ranks and gathers what they saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evenflow.launch import ForkServer
from evenflow.models import Cut
from evenflow.plan import Axes


@dataclass
class SplitRun:
    """Of all processes together: each step's loss and norm, the first step's gradients, the last weights and moments.

    Under ZeRO 1 gradients are pieces, by names such as `NAME@7`; `copies` has the weights of every process.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    buffers: list[int]
    host_buffers: list[int]
    peaks: list[int]
    moments: dict[str, torch.Tensor]
    copies: dict[str, list[torch.Tensor]]


def joined(parts: list[dict[str, torch.Tensor]], cuts: list[dict[str, Cut]]) -> dict[str, torch.Tensor]:
    """Whole tensors from what each place on tp has; one that is not cut must be the same everywhere.

    Names may be those of moments (`exp_avg/NAME`), or of pieces of flat parts (`NAME@7`).
    """
    whole: dict[str, torch.Tensor] = {}
    for key in dict.fromkeys(own.partition("@")[0] for part in parts for own in part):
        name, found = key.rpartition("/")[2], []
        for part, own_cuts in zip(parts, cuts, strict=True):
            pieces = {own: piece for own, piece in part.items() if own.partition("@")[0] == key}
            if key in pieces:
                found.append(pieces[key])
                continue
            flat = [pieces[own].reshape(-1) for own in sorted(pieces, key=lambda own: int(own.partition("@")[2]))]
            found.append(torch.cat(flat).view(own_cuts[name].local_shape) if name in own_cuts else torch.cat(flat))
        if name in cuts[0]:
            whole[key] = cuts[0][name].join(found)
        else:
            assert all(torch.equal(other, found[0]) for other in found), key
            whole[key] = found[0]
    return whole


@pytest.fixture
def run_split(server: ForkServer, tmp_path: Path) -> Callable[..., SplitRun]:
    """Train a split model for some steps."""
    runs = 0

    def run(
        config: dict[str, Any], split: list[list[int]], stage_rank: Sequence[int] | None = None, **payload: Any
    ) -> SplitRun:
        nonlocal runs
        placed = list(stage_rank or range(len(split)))
        axes = Axes(**payload["axes"]) if payload.get("axes") else Axes(pp=max(placed) + 1)
        ranks = axes.processes
        runs += 1
        folder = tmp_path / f"run-{runs}"
        folder.mkdir()
        defaults = {"schedule": "1f1b", "microbatches": 4, "steps": 1, "seed": 3, "shape": [2, 16], "recompute": "none"}
        group = server.start(
            "parity",
            "tests.parity.ranks:run",
            ranks,
            {
                **defaults,
                **payload,
                "config": dict(config),
                "split": split,
                "stage_rank": placed,
                "folder": str(folder),
            },
        )
        results = dict(item for item in group.messages() if item is not None)
        gradients: dict[str, torch.Tensor] = {}
        if axes.tp > 1:
            return _shared(results, axes, folder)
        weights: dict[str, torch.Tensor] = {}
        moments: dict[str, torch.Tensor] = {}
        copies: dict[str, list[torch.Tensor]] = {}
        for rank in range(ranks):
            gradients |= load_file(folder / f"gradients-{rank}.safetensors")
            moments |= load_file(folder / f"moments-{rank}.safetensors")
            own = load_file(folder / f"weights-{rank}.safetensors")
            weights |= own
            for name, weight in own.items():
                copies.setdefault(name, []).append(weight)
        return SplitRun(
            losses=[step[0] for step in results[0]["steps"]],
            norms=[step[1] for step in results[0]["steps"]],
            gradients=gradients,
            weights=weights,
            buffers=[results[rank]["buffers"] for rank in range(ranks)],
            host_buffers=[results[rank]["host_buffers"] for rank in range(ranks)],
            moments=moments,
            copies=copies,
            peaks=[results[rank]["peak"] for rank in range(ranks)],
        )

    return run


def _shared(results: dict[int, Any], axes: Axes, folder: Path) -> SplitRun:
    """A run whose stages were shared out over tp, put together again."""
    cuts: list[dict[str, Cut]] = []
    for tp in range(axes.tp):
        own = [results[rank]["cuts"] for rank in range(axes.processes) if axes.coordinates(rank).tp == tp]
        cuts.append(
            {name: Cut(**{**cut, "shape": tuple(cut["shape"])}) for found in own for name, cut in found.items()}
        )

    def whole(kind: str) -> dict[str, torch.Tensor]:
        parts: list[dict[str, torch.Tensor]] = [{} for _ in range(axes.tp)]
        for rank in range(axes.processes):
            parts[axes.coordinates(rank).tp] |= load_file(folder / f"{kind}-{rank}.safetensors")
        return joined(parts, cuts)

    return SplitRun(
        losses=[step[0] for step in results[0]["steps"]],
        norms=[step[1] for step in results[0]["steps"]],
        gradients=whole("gradients"),
        weights=whole("weights"),
        buffers=[],
        host_buffers=[],
        moments=whole("moments"),
        copies={},
        peaks=[results[rank]["peak"] for rank in range(axes.processes)],
    )
