"""The job that every contestant of the peers benchmark trains, so that none of them can have another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from evenflow.plan import Plan
from evenflow.program import Program
from evenflow.runtime import Transport
from evenflow.spec import Batch

SEED = 1
LEARNING_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class PeersJob:
    """A model and a batch.

    Attributes:
        config: the content of the model's config.json.
        batch: one step's sequences.
    """

    config: dict[str, Any]
    batch: Batch


def _llama(hidden: int, feed_forward: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": 8,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }


JOB = PeersJob(_llama(384, 1024, 6, 32000), Batch(global_batch_size=16, micro_batch_size=2, seq_length=256))
TINY = PeersJob(_llama(64, 128, 2, 256), Batch(global_batch_size=8, micro_batch_size=2, seq_length=16))


@dataclass(frozen=True, slots=True)
class Work:
    """One rank's share of the job, as its contestants are given it.

    Attributes:
        rank: which rank this is.
        plan: evenflow's plan.
        program: the plan's program.
        equal_split: the layers of each rank where layer counts are equal.
        config: the model's.
        ids: the token ids of a step [global batch, seq].
        transport: how evenflow's tensors travel, and the sums of all contestants but DeepSpeed.
    """

    rank: int
    plan: Plan
    program: Program
    equal_split: list[list[int]]
    config: PretrainedConfig
    ids: Tensor
    transport: Transport

    def tokens(self, index: int) -> Tensor:
        """The token ids [batch, seq] of a microbatch."""
        size = self.plan.micro_batch_size
        return self.ids[index * size : (index + 1) * size]

    @property
    def microbatches(self) -> int:
        """Microbatches of a step."""
        return self.program.microbatches


def draw_ids(config: PretrainedConfig, sequences: int, seq_length: int) -> Tensor:
    """A step's token ids [sequences, seq], the same on every rank."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, config.vocab_size, (sequences, seq_length), generator=generator)
