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
