"""The state of a run after a step, by parameter name: any layout can go on from what any other layout saved.

    RUN/checkpoints/step-00000060/rank-0.safetensors   weights and both moments of rank 0's parameters
                                  rank-1.safetensors
                                  manifest.json        written last: without it the checkpoint does not count

A checkpoint is written aside and published by renaming its folder; the one before it goes only after that.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig

from evenflow.errors import InputError
from evenflow.files import FORMAT_VERSION, write_json
from evenflow.models import Stage
from evenflow.runtime import Optimizer

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands, and what must not change when it goes on.

    Attributes:
        model: the hash of the model's configuration.
        step: the last step whose update is in the weights.
        steps: the run's total, which its learning rate spans.
        seed: of weights and order of samples.
        global_batch_size: sequences of a step.
        micro_batch_size: sequences of a microbatch, over which gradients add up in order.
        seq_length: tokens of a sequence.
        learning_rate: at its peak.
    """

    model: str
    step: int
    steps: int
    seed: int
    global_batch_size: int
    micro_batch_size: int
    seq_length: int
    learning_rate: float


# What a configuration says beside what the model computes.
_NOT_THE_MODEL = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache")


def config_hash(config: PretrainedConfig) -> str:
    """Equal for configurations of the same model, wherever they were saved and with whatever tokenizer."""
    facts = {
        name: value
        for name, value in config.to_dict().items()
        if name not in _NOT_THE_MODEL and not name.endswith("token_id")
    }
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def newest_checkpoint(run: Path) -> tuple[Path, RunState] | None:
    """The newest complete checkpoint of a run.

    Raises:
        InputError: its manifest is not readable.
    """
    complete = sorted(path.parent for path in (run / "checkpoints").glob(f"step-*/{_MANIFEST}"))
    if not complete:
        return None
    path = complete[-1] / _MANIFEST
    try:
        facts = json.loads(path.read_text())
        version = facts.pop("format_version")
        files = facts.pop("files")
        state = RunState(**facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): the run cannot go on from it") from None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has format_version {version}; this evenflow reads {FORMAT_VERSION}")
    for name, size in files.items():
        file = complete[-1] / Path(name).name
        if not file.is_file() or file.stat().st_size != size:
            raise InputError(f"{file} is missing or not of {size} bytes: the run cannot go on from it")
    return complete[-1], state


def write_shard(
    folder: Path,
    rank: int,
    stages: Sequence[Stage],
    moments: Mapping[str, torch.Tensor],
    left_out: Collection[str] = (),
) -> None:
    """Write one rank's weights and moments, but for those of the parameters that another rank writes."""
    tensors = {f"weight/{name}": own.detach().contiguous() for name, own in _own_tensors(stages).items()}
    kept = {key: own for key, own in {**tensors, **moments}.items() if key.partition("/")[2] not in left_out}
    save_file(kept, folder / f"rank-{rank}.safetensors")


@torch.no_grad()
def read_shards(folder: Path, step: int, stages: Sequence[Stage], optimizer: Optimizer) -> None:
    """Take these stages' weights and moments from whichever ranks saved them.

    Raises:
        InputError: a tensor is missing or misshapen, or a file unreadable.
    """
    wanted = {f"weight/{name}": own for name, own in _own_tensors(stages).items()}
    moments: dict[str, torch.Tensor] = {}
    found: set[str] = set()
    for file in sorted(folder.glob("rank-*.safetensors")):
        try:
            with safe_open(file, framework="pt") as reader:
                for name in reader.keys():  # noqa: SIM118 - the reader is no dict
                    kind, _, parameter = name.partition("/")
                    if f"weight/{parameter}" not in wanted:
                        continue
                    tensor = reader.get_tensor(name)
                    if tensor.shape != wanted[f"weight/{parameter}"].shape:
                        raise InputError(f"{file}: {name} has shape {list(tensor.shape)}, not the model's")
                    if kind == "weight":
                        wanted[name].copy_(tensor)
                        found.add(name)
                    else:
                        moments[name] = tensor
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is not a readable checkpoint: {error}") from None
    missing = wanted.keys() - found
    if missing:
        raise InputError(f"{folder} lacks {min(missing)} ({len(missing)} of {len(wanted)} tensors); another run's?")
    optimizer.set_moments(moments, step)


def _own_tensors(stages: Sequence[Stage]) -> dict[str, torch.Tensor]:
    """All parameters and saved buffers of one rank, by name."""
    return {
        name: tensor
        for stage in stages
        for name, tensor in (*stage.named_model_parameters().items(), *stage.named_model_buffers().items())
    }


def publish(partial: Path, run: Path, state: RunState, ranks: int) -> Path:
    """Complete a checkpoint that all ranks have written, and drop the older ones."""
    files = {f"rank-{rank}.safetensors": (partial / f"rank-{rank}.safetensors").stat().st_size for rank in range(ranks)}
    write_json(partial / _MANIFEST, {"format_version": FORMAT_VERSION, **asdict(state), "files": files})
    final = run / "checkpoints" / f"step-{state.step:08d}"
    partial.rename(final)
    for other in (run / "checkpoints").glob("step-*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def check_resumable(state: RunState, wanted: RunState, last_step: int, out: Path) -> None:
    """Refuse to go on with settings that would make it another run, or where nothing is left to do.

    Raises:
        InputError: which setting, and both values; or which steps are done.
    """
    if state.model != wanted.model:
        raise InputError(f"{out} was run with another model: its configuration differs from the one given")
    options: Sequence[tuple[str, object, object]] = (
        ("--seed", state.seed, wanted.seed),
        ("--global-batch-size", state.global_batch_size, wanted.global_batch_size),
        ("--micro-batch-size", state.micro_batch_size, wanted.micro_batch_size),
        ("--seq-length", state.seq_length, wanted.seq_length),
        ("--lr", state.learning_rate, wanted.learning_rate),
        ("--steps", state.steps, wanted.steps),
    )
    for option, had, has in options:
        if had != has:
            raise InputError(f"{out} was run with {option} {had}, not {has}; {option} {had} goes on with it")
    if state.step >= state.steps:
        raise InputError(f"{out} has done all its {state.steps} steps; a new --out would start another run")
    if last_step <= state.step:
        raise InputError(f"{out} has done step {state.step}: --stop-at {state.step + 1} to {state.steps} would go on")
