"""What reading a model's weights takes of each process's memory, beside the share of the weights that it keeps.

    python -m benchmarks.loading                       # a model of 1 GiB over 4 processes

Each process builds its stage and reads it from a Hugging Face directory's safetensors, as a run's ranks do, all at the
same time. `over_share` is the peak of its anonymous memory (RssAnon) above what it held before, over the bytes of its
own weights: at most 1.15 is aimed at.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoConfig, PretrainedConfig

from evenflow.launch import Channel, shared_server
from evenflow.models import build_stage, draw_weights, read_config, read_weights, write_index, write_weights
from evenflow.spec import this_machine

MIB = 2**20
_BLOCK_PARTS = 2  # of the layers beside the blocks: an embedding and a head


def main() -> None:
    """Write a model, load it, print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=1536)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=13_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.processes, arguments.hidden_size, arguments.blocks, arguments.vocab_size)
    if arguments.json:
        print(json.dumps(result))
        return
    machine = result["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores; a model of {result['model_bytes'] / MIB:.0f} MiB")
    print("process  weights MiB  peak MiB  over its share")
    for rank, own in enumerate(result["ranks"]):
        share, peak = own["share_bytes"] / MIB, own["peak_bytes"] / MIB
        print(f"{rank:7}  {share:11.1f}  {peak:8.1f}  {own['over_share']:.3f}")


def measure(processes: int = 4, hidden_size: int = 1536, blocks: int = 8, vocab_size: int = 13_000) -> dict[str, Any]:
    """Write a model with a shard for each process, and load it in as many processes at once."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden_size,
        intermediate_size=8 * hidden_size // 3,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_hidden_layers=blocks,
        vocab_size=vocab_size,
        tie_word_embeddings=False,
    )
    layers = blocks + _BLOCK_PARTS
    cuts = [0, *(1 + blocks * rank // processes for rank in range(1, processes)), layers]
    split = [list(range(first, end)) for first, end in pairwise(cuts)]
    with tempfile.TemporaryDirectory(prefix="evenflow-") as name:
        folder = Path(name)
        _write_model(folder, config, split)
        payload = {"config": config.to_json_string(use_diff=False), "split": split, "folder": str(folder)}
        group = shared_server().start("loading", "benchmarks.loading:load", processes, payload)
        found = dict(item for item in group.messages() if item is not None)
    ranks = [found[rank] for rank in range(processes)]
    return {
        "machine": asdict(this_machine()),
        "model_bytes": sum(own["share_bytes"] for own in ranks),
        "ranks": [
            {
                **{key: own[key] for key in ("share_bytes", "peak_bytes")},
                "over_share": own["peak_bytes"] / own["share_bytes"],
            }
            for own in ranks
        ],
    }


def load(rank: int, channel: Channel, payload: dict[str, Any]) -> None:
    """One process: build a stage, read its weights, say what that took."""
    torch.set_num_threads(1)
    config = read_config(payload["config"])
    with AnonymousPeak() as peak:
        stage = build_stage(config, payload["split"][rank])
        draw_weights(stage, 0)
        read_weights(stage, sorted(Path(payload["folder"]).glob("*.safetensors")))
    share = sum(own.nbytes for own in stage.named_model_parameters().values())
    channel.send({"kind": "loaded", "share_bytes": share, "peak_bytes": peak.bytes})


class AnonymousPeak:
    """The most anonymous memory (RssAnon) that this process holds within, above what it held before.

    It is looked at every millisecond: the kernel keeps a peak only of all pages, those of mapped files among them, and
    the files are mapped while they are read.
    """

    def __enter__(self) -> Self:
        self._base = self._most = _anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """So far."""
        return self._most - self._base

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._most = max(self._most, _anonymous())
        self._most = max(self._most, _anonymous())


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))


def _write_model(folder: Path, config: PretrainedConfig, split: list[list[int]]) -> None:
    shards = []
    for rank, layers in enumerate(split):
        stage = build_stage(config, layers)
        draw_weights(stage, 1)
        shards.append(write_weights([stage], folder, rank, len(split)))
    write_index(folder, shards)


if __name__ == "__main__":
    main()
