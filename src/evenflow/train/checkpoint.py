"""The state of a run after a step, by parameter name: any layout can go on from what any other layout saved.

    RUN/checkpoints/step-00000060/rank-0.safetensors   weights and both moments of rank 0's parameters
                                  rank-1.safetensors
                                  manifest.json        all that is no tensor, each file's size and hash, its own hash
                    partial-00000080/                  one that is being written
                    dropped-00000020/                  one that is being removed

Ranks write their shards into a fresh folder and flush them to the disk. The manifest goes in last, and then the folder
gets its name; one that is dropped loses it first. So what has a name is whole, or was damaged later, which its hashes
tell, and a manifest that is missing. Nothing random is state of its
own: samples, drawn weights and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from evenflow.errors import FaultError, InputError, first_line
from evenflow.files import check_names, check_shard_header, sync_folder, write_json
from evenflow.spec import DEFAULT_DTYPE, Dtype, check_dtype
from evenflow.train.copies import LeftCopies
from evenflow.train.job import Job
from evenflow.train.records import DAMAGED, Written, free_name, read_written, write_written
from evenflow.train.shards import hash_file

CHECKPOINT_VERSION = 5
_MANIFEST = "manifest.json"
_MOST_MANIFEST_BYTES = 2**26
_PARTIAL = "partial-"
_DROPPED = "dropped-"
_READERS = 4  # files hashed at once

Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands, and what must not change when it goes on.

    Attributes:
        model: the hash of the model's configuration.
        step: the last step whose update is in the weights; learning rate, samples and dropout follow from it.
        tokens: trained on so far.
        settings: those that make the run what it is, by the key of the job file.
        beside: what the run's other files were then, by name; a checkpoint of an older evenflow does not say.
    """

    model: str
    step: int
    tokens: int
    settings: Mapping[str, Setting]
    beside: Mapping[str, Written] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are as they were written.

    Attributes:
        folder: where it lies.
        state: what its manifest says.
        passed_over: newer ones that are damaged, and how.
    """

    folder: Path
    state: RunState
    passed_over: tuple[str, ...] = ()


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


def state_hash(tensors: Mapping[str, str]) -> str:
    """One hash of a state from those of its tensors, by name."""
    return hashlib.blake2b(json.dumps(dict(sorted(tensors.items()))).encode(), digest_size=8).hexdigest()


def manifest_hash(facts: Mapping[str, Any]) -> str:
    """What a manifest says of itself, from all that it says beside: a damaged step would be believed."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sync_lines(path: Path) -> None:
    """See to it that a file's lines are on the disk; one that could not be made yet has none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def shard_file(rank: int) -> str:
    """The file of one rank's tensors."""
    return f"rank-{rank}.safetensors"


def partial_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` is being written."""
    return run / "checkpoints" / f"{_PARTIAL}{step:08d}"


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run whose files have the hashes that its manifest says; None where there is none.

    Raises:
        InputError: there are some, and all are damaged: the newest is named, and how.
    """
    damaged: list[str] = []
    for folder in sorted((path for path in (run / "checkpoints").glob("step-*") if path.is_dir()), reverse=True):
        if not (folder / _MANIFEST).exists() and _step_of(folder) is None:
            continue  # somebody's own
        try:
            state, files = _read_manifest(folder / _MANIFEST)
            if state.step != _step_of(folder):
                raise InputError(f"{folder / _MANIFEST} is that of step {state.step}, not of its folder's")
            _verify(folder, files)
        except InputError as error:
            damaged.append(str(error))
            continue
        return Checkpoint(folder, state, tuple(damaged))
    if damaged:
        older = f", nor from {len(damaged) - 1} older ones" if len(damaged) > 1 else ""
        raise InputError(f"{damaged[0]}: the run cannot go on from it{older}")
    return None


@dataclass(frozen=True, slots=True)
class Taken:
    """A checkpoint that all ranks have reported on.

    Attributes:
        step: after which.
        why_not: what kept a rank from writing its part; None where all did.
    """

    step: int
    why_not: str | None = None


class Checkpoints:
    """Those of a run under way: published as soon as all ranks have written their part, older ones dropped.

    Args:
        run: the run's folder.
        ranks: how many shards make a checkpoint.
        state: what to write beside the tensors, given the step.
        keep_last: how many of the newest to keep.
        keep_every: beside them, those after a multiple of so many steps.
        newest: the step that is gone on from.
    """

    def __init__(
        self,
        run: Path,
        ranks: int,
        state: Callable[[int], RunState],
        keep_last: int,
        keep_every: int | None = None,
        newest: int = 0,
    ) -> None:
        self._run = run
        self._ranks = ranks
        self._state = state
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._newest = newest
        self._files: dict[int, dict[int, dict[str, Any]]] = {}
        self._why_not: dict[int, str] = {}
        self._hashes: dict[int, Mapping[str, str]] = {}

    def exist(self) -> bool:
        """Whether there is one by now."""
        return any((self._run / "checkpoints").glob(f"step-*/{_MANIFEST}"))

    def clear(self) -> None:
        """Remove what runs before were writing, or removing, when they ended."""
        for kind in (_PARTIAL, _DROPPED):
            for folder in (self._run / "checkpoints").glob(f"{kind}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def take(self, rank: int, message: Mapping[str, Any]) -> Taken | None:
        """Take a rank's report of a shard, on the disk or not; what came of the checkpoint once all have reported.

        Where one could not write, nothing stays of what the others have.
        """
        step: int = message["step"]
        files = self._files.setdefault(step, {})
        if "why_not" in message:
            self._why_not.setdefault(step, message["why_not"])
        files[rank] = message.get("file", {})
        if len(files) < self._ranks:
            return None
        why_not = self._why_not.pop(step, None)
        if why_not is not None:
            self._discard(step)
        return Taken(step, why_not)

    def unfinished(self, copies: LeftCopies, heard: int) -> int:
        """After which step ranks that are gone left a state that is no checkpoint yet: each has written or copied it.

        Args:
            copies: what they have copied.
            heard: the newest step whose lines are known.

        Returns:
            The newest such step; 0 where there is none.
        """
        copied = copies.steps()
        for step in sorted({*copied.values(), *self._files}, reverse=True):
            have = {rank for rank, own in copied.items() if own == step} | self._written(step).keys()
            if self._newest < step <= heard and len(have) == self._ranks:
                return step
        return 0

    def finish(self, step: int, copies: LeftCopies, look: Callable[[], object]) -> Taken:
        """Write what ranks that are gone had copied of such a state and had not written.

        Args:
            step: of `unfinished`.
            copies: what they have copied.
            look: called before each file.
        """
        files = self._files[step] = self._written(step)
        self._why_not.pop(step, None)
        for rank, written in copies.write(partial_folder(self._run, step), step, files, look):
            if isinstance(written, str):
                self._discard(step)
                return Taken(step, written)
            files[rank] = asdict(written)
        return Taken(step)

    def _written(self, step: int) -> dict[int, dict[str, Any]]:
        """What ranks have reported of a state's files; a rank that could not write has none."""
        return {rank: own for rank, own in self._files.get(step, {}).items() if own}

    def _discard(self, step: int) -> None:
        self._files.pop(step, None)
        shutil.rmtree(partial_folder(self._run, step), ignore_errors=True)

    def take_hashes(self, rank: int, hashes: Mapping[str, str]) -> str | None:
        """Take what a rank found its tensors to be after a resume; once all have, the hash of the whole state."""
        self._hashes[rank] = hashes
        if len(self._hashes) < self._ranks:
            return None
        return state_hash({name: own for hashes in self._hashes.values() for name, own in hashes.items()})

    def seconds(self, step: int) -> tuple[float, float]:
        """How long the slowest rank took to write its part, and all ranks to hash theirs; until it is published."""
        files = self._files[step].values()
        return max(own["seconds"] for own in files), sum(own["hash_s"] for own in files)

    def publish(self, step: int) -> Path:
        """Complete a checkpoint that all ranks have written, give it its name, and drop older ones.

        Raises:
            FaultError: the disk is full or failed; nothing stays of it, and older ones are as they were.
        """
        try:
            final = self._name(step)
        except (OSError, FaultError, InputError) as error:
            self._discard(step)
            reason = (error.strerror or first_line(error)) if isinstance(error, OSError) else str(error)
            raise FaultError(f"the checkpoint after step {step} cannot be completed: {reason}") from None
        self._newest = step
        self._drop_older(final)
        self._drop_failed(step)
        return final

    def _name(self, step: int) -> Path:
        partial = partial_folder(self._run, step)
        state = self._state(step)
        written = self._files.pop(step)
        for name in state.beside:
            if name.endswith(".jsonl"):  # what the manifest says of them has to be true after a power cut too
                _sync_lines(self._run / name)
        files = {written[rank]["name"]: _file_facts(written[rank]) for rank in sorted(written)}
        manifest = {
            "format_version": CHECKPOINT_VERSION,
            "model": state.model,
            "step": state.step,
            "tokens": state.tokens,
            "settings": dict(state.settings),
            "files": files,
            "beside": write_written(state.beside),
        }
        write_json(partial / _MANIFEST, {**manifest, "hash": manifest_hash(manifest)})
        final = self._run / "checkpoints" / f"step-{step:08d}"
        if final.exists():  # a run goes on from its newest whole one, so this one is damaged
            final.rename(free_name(final.with_name(f"{DAMAGED}{step:08d}")))
        partial.rename(final)
        sync_folder(final.parent)
        return final

    def _drop_older(self, newest: Path) -> None:
        found = sorted(path for path in newest.parent.glob("step-*") if _step_of(path) is not None)
        for folder in found[: -self._keep_last]:
            step = _step_of(folder)
            if folder == newest or (self._keep_every and step is not None and step % self._keep_every == 0):
                continue
            dropped = folder.with_name(_DROPPED + folder.name.partition("-")[2])
            with suppress(OSError):
                shutil.rmtree(dropped, ignore_errors=True)
                folder.rename(dropped)  # first: half a checkpoint would be taken for a damaged one
                shutil.rmtree(dropped, ignore_errors=True)

    def _drop_failed(self, step: int) -> None:
        """Remove what saves before `step` left where the disk that did not take them gave nothing back either."""
        for folder in (self._run / "checkpoints").glob(f"{_PARTIAL}*"):
            number = folder.name.removeprefix(_PARTIAL)
            if number.isdecimal() and int(number) < step:
                shutil.rmtree(folder, ignore_errors=True)


_BEFORE = {"dtype": DEFAULT_DTYPE}  # what runs had when there was no such key yet


def check_resumable(state: RunState, wanted: RunState, last_step: int, out: Path) -> None:
    """Refuse to go on with settings that would make it another run, or where nothing is left to do.

    Raises:
        InputError: which setting, and both values; or which steps are done.
    """
    if state.model != wanted.model:
        raise InputError(f"{out} was run with another model: its configuration differs from the one given")
    for key, has in wanted.settings.items():
        had = state.settings.get(key, _BEFORE.get(key))
        if had != has:
            option = f"--{key.replace('_', '-')}"
            advice = f"{option} {had} goes on with it" if had is not None else f"without {option} it goes on"
            raise InputError(f"{out} was run with {option} {had}, not {has}; {advice}")
    steps = wanted.settings["steps"]
    if state.step >= int(steps or 0):
        raise InputError(f"{out} has done all its {steps} steps; a new --out would start another run")
    if last_step <= state.step:
        raise InputError(f"{out} has done step {state.step}: --stop-at {state.step + 1} to {steps} would go on")


def choose_dtype(job: Job, resumed: RunState | None) -> Dtype:
    """The type that a job trains in: a resumed run keeps its own unless it is told another, which is refused then."""
    kept = resumed.settings.get("dtype") if resumed else None
    return job.dtype or (check_dtype(kept) if isinstance(kept, str) else DEFAULT_DTYPE)


def _file_facts(written: Mapping[str, Any]) -> dict[str, Any]:
    return {"bytes": written["size"], "xxh3": written["xxh3"]}


def _read_manifest(path: Path) -> tuple[RunState, dict[str, dict[str, Any]]]:
    try:
        if path.is_symlink() or path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise ValueError("it is a link, or too large to be one")
        facts = json.loads(path.read_text())
        version = facts["format_version"]
        if version != CHECKPOINT_VERSION:
            raise InputError(f"{path} has format_version {version}; this evenflow reads {CHECKPOINT_VERSION}")
        if facts.pop("hash", None) != manifest_hash(facts):
            raise InputError(f"{path} is damaged: it does not have its own hash")
        beside = read_written(facts.get("beside", {}))
        state = RunState(facts["model"], int(facts["step"]), int(facts["tokens"]), dict(facts["settings"]), beside)
        files = {str(name): {"bytes": int(own["bytes"]), "xxh3": own["xxh3"]} for name, own in facts["files"].items()}
    except FileNotFoundError:
        raise InputError(f"{path} is missing, which says what belongs to the checkpoint") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error!r})") from None
    return state, files


def _verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold a checkpoint's files against its manifest, sizes first.

    Raises:
        InputError: which file, and what is wrong with it.
    """
    check_names(folder, list(files), str(folder / _MANIFEST))
    for name, facts in files.items():
        file = folder / name
        if file.is_symlink():
            raise InputError(f"{file} is a link, and was written as a file")
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise InputError(f"{file} is missing or not of {facts['bytes']} bytes")
        check_shard_header(file)
    extra = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in files)
    if extra:  # its reader takes every shard that lies there
        raise InputError(f"{folder / extra[0]} is not in the manifest")
    with ThreadPoolExecutor(_READERS) as pool:
        for name, found in zip(files, pool.map(_hash_of, (folder / name for name in files)), strict=True):
            if found != files[name]["xxh3"]:
                raise InputError(
                    f"{folder / name} is damaged: its hash is {found}, it was written as {files[name]['xxh3']}"
                )


def _hash_of(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _step_of(folder: Path) -> int | None:
    digits = folder.name.partition("-")[2]
    return int(digits) if digits.isdecimal() else None
