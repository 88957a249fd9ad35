"""What each forked rank of the peers benchmark does: in every round one step of every contestant, in turn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.torch_peer import TorchPeer
from evenflow.execute import Executor
from evenflow.launch import Channel
from evenflow.models import build_stage, draw_weights, find_model
from evenflow.program import build_program, verify
from evenflow.runtime import Optimizer, OptimizerSettings, connect

_SEED = 1
_LEARNING_RATE = 1e-4
_WARM_UP_ROUNDS = 2


def run(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """Time `payload["rounds"]` rounds and send each contestant's seconds and losses."""
    torch.set_num_threads(payload["threads"])
    config = find_model(payload["model"]).config
    ours: list[list[int]] = payload["split"]
    batch, seq = payload["shape"]
    microbatches: int = payload["microbatches"]
    transport = connect(rank, len(ours), Path(payload["rendezvous"]), 300)
    stage = build_stage(config, ours[rank])
    draw_weights(stage, _SEED)
    program = build_program("1f1b", len(ours), microbatches)
    verify(program)
    optimizer = Optimizer(stage.named_model_parameters(), stage.anatomy.parameters, OptimizerSettings())
    executor = Executor(program, rank, {rank: stage}, transport, optimizer, (batch, seq, config.hidden_size))
    peers = {
        "torch_equal_layers": TorchPeer(config, payload["equal_split"], rank, microbatches, _SEED),
        "torch_same_split": TorchPeer(config, ours, rank, microbatches, _SEED),
    }
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(0, config.vocab_size, (microbatches * batch, seq), generator=generator)

    def tokens(index: int) -> Tensor:
        return ids[index * batch : (index + 1) * batch]

    names = ["evenflow", *peers]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, float] = {}
    together = torch.zeros(1)
    for round_number in range(payload["rounds"] + _WARM_UP_ROUNDS):
        turn = round_number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            transport.sum(together)
            start = time.perf_counter()
            if name == "evenflow":
                loss = executor.run_step(tokens, _LEARNING_RATE).loss
            else:
                loss = peers[name].run_step(ids, transport, _LEARNING_RATE)
            transport.sum(together)
            if round_number >= _WARM_UP_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
            losses[name] = loss
    channel.send({"kind": "result", "seconds": seconds, "losses": losses})
    transport.close()
