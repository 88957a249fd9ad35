"""One bit flipped, a file cut, gone or swapped, in each kind of file of a run: named before anything is made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.models import find_model
from evenflow.train import Job, RunResult
from evenflow.train.checkpoint import _read_manifest, newest_checkpoint
from evenflow.train.prepare import reopen_text
from tests.faults.conftest import Hears, same_weights

NEWEST, BEFORE = "checkpoints/step-00000009", "checkpoints/step-00000006"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def swap(file: Path) -> None:
    """With a file of the same kind: the other rank's, or the checkpoint's before."""
    is_shard = file.name.startswith("rank")
    other = file.with_name("rank-1.safetensors") if is_shard else file.parents[1] / "step-00000006" / file.name
    kept = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(kept)


DAMAGES = (flip, cut, Path.unlink, swap)


@pytest.fixture(scope="module")
def stopped(whole: tuple[Job, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 3, 6 and 9."""
    out = tmp_path_factory.mktemp("damage") / "run"
    evenflow.train(replace(whole[0], out=out, stop_at=9, keep_last=9))
    return out


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda own: own.__name__)
@pytest.mark.parametrize("name", ["rank-0.safetensors", "manifest.json"])
def test_a_checkpoint_is_passed_over_for_the_one_before(
    stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert newest_checkpoint(run) is not None
    damage(run / NEWEST / name)
    found = newest_checkpoint(run)
    assert found is not None
    if damage is swap and name == "manifest.json":  # both manifests are another folder's then
        assert found.state.step == 3
        assert len(found.passed_over) == 2
    else:
        assert found.state.step == 6
        was_never_completed = damage is Path.unlink and name == "manifest.json"  # as far as anybody can tell
        assert [name in line for line in found.passed_over] == [True] * (not was_never_completed)


def test_no_bit_of_a_manifest_can_flip_unseen(stopped: Path) -> None:
    """Each byte in turn: a step that is believed would go on with other samples."""
    path = stopped / NEWEST / "manifest.json"
    content = path.read_bytes()
    unseen = []
    try:
        for at in range(len(content)):
            damaged = bytearray(content)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            with suppress(evenflow.InputError):
                unseen.append((at, _read_manifest(path)))
    finally:
        path.write_bytes(content)
    same = _read_manifest(path)
    assert [at for at, read in unseen if read != same] == []
    assert len(unseen) <= content.count(b"\n") + content.count(b" ")  # one kind of white space for another


def test_a_checkpoint_under_another_steps_name_is_none(stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    (run / NEWEST).rename(run / "checkpoints/step-00000011")
    found = newest_checkpoint(run)
    assert found is not None
    assert found.state.step == 6
    assert "is that of step 9, not of its folder's" in found.passed_over[0]


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=lambda own: own.__name__)
@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "tokens.json", "tokenizer.json"])
def test_tokens_are_not_trained_on(
    whole: tuple[Job, RunResult], stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    job, tokens = whole[0], Path(shutil.copytree(stopped / "tokens", tmp_path / "tokens"))
    damage(tokens / name)
    with pytest.raises(evenflow.InputError, match=name.replace(".", r"\.")):
        reopen_text(job, find_model(job.model), tokens, 32)


def test_damaged_tokens_end_a_resume(whole: tuple[Job, RunResult], stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip(run / "tokens" / "tokens.bin")
    with pytest.raises(evenflow.InputError, match=r"tokens\.bin is damaged: its hash is"):
        evenflow.train(replace(whole[0], out=run, resume=True))


def test_a_run_whose_newest_checkpoint_is_damaged_ends_as_if_it_were_not(
    whole: tuple[Job, RunResult], stopped: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip(run / NEWEST / "rank-1.safetensors")
    hears = Hears()
    evenflow.train(replace(whole[0], out=run, resume=True), hears)
    (warning,) = hears.starting("warning: ")
    assert f"{run / NEWEST / 'rank-1.safetensors'} is damaged" in warning
    assert f"going on from {run / BEFORE}, after step 6" in warning
    assert same_weights(run, whole[0].out)
