"""One bit flipped, a file cut, gone or swapped, in each kind of file of a run: named before anything is made of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.models import find_model
from evenflow.train import Job, RunResult, Silent
from evenflow.train.checkpoint import _read_manifest, manifest_hash, newest_checkpoint
from evenflow.train.prepare import prepare_text, reopen_text
from evenflow.train.records import why_damaged
from tests.faults.conftest import STEPS, Hears, same_weights
from tests.faults.injection import Faults

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
    swap_with(other, file)


def swap_lines(file: Path) -> None:
    """With a file beside it: the samples for the metrics, and the metrics for any other."""
    swap_with(file.with_name("samples.jsonl" if file.name == "metrics.jsonl" else "metrics.jsonl"), file)


def swap_with(other: Path, file: Path) -> None:
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
        assert [str(run / NEWEST / name) in line for line in found.passed_over] == [True]


@pytest.mark.parametrize("left", ["dropped-00000003", "partial-00000009"])
def test_what_was_being_written_or_removed_is_no_damage(stopped: Path, tmp_path: Path, left: str) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    (run / NEWEST).rename(run / "checkpoints" / left)
    (run / "checkpoints" / left / "manifest.json").unlink()
    found = newest_checkpoint(run)
    assert found is not None
    assert (found.state.step, found.passed_over) == (6, ())


BESIDE = ("metrics.jsonl", "samples.jsonl", "plan.json")


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, swap_lines], ids=lambda own: own.__name__)
@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_the_checkpoints_is_held_against_them(
    stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    found = newest_checkpoint(run)
    assert found is not None
    written = found.state.beside
    assert [why_damaged(run / own, written[own]) for own in BESIDE] == [None] * len(BESIDE)
    damage(run / name)
    assert str(run / name) in str(why_damaged(run / name, written[name]))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("metrics.jsonl", flip), ("metrics.jsonl", Path.unlink), ("samples.jsonl", cut), ("plan.json", flip),
        (f"{NEWEST}/manifest.json", Path.unlink), (f"{NEWEST}/rank-0.safetensors", cut),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_the_right_tokens_and_weights(
    whole: tuple[Job, RunResult], stopped: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run, (job, reference), hears = Path(shutil.copytree(stopped, tmp_path / "run")), whole, Hears()
    damage(run / name)
    damaged = (run / name).read_bytes() if (run / name).exists() else None
    result = evenflow.train(replace(job, out=run, resume=True), hears)
    (warning,) = [line for line in hears.starting("warning: ") if " is slow: " not in line]
    assert str(run / name) in warning
    done = {own.step: own.tokens for own in reference.metrics}
    assert all(own.tokens == done[own.step] for own in result.metrics)
    assert result.metrics[-1].step == STEPS
    assert same_weights(run, job.out)
    if name.endswith(".jsonl"):
        aside = run / f"damaged-{name}"
        assert (aside.read_bytes() if aside.exists() else None) == damaged
        assert [json.loads(line)["step"] for line in (run / name).read_text().splitlines()] == [10, 11, 12]


def test_a_checkpoint_that_says_nothing_of_the_lines_is_gone_on_from(
    whole: tuple[Job, RunResult], stopped: Path, tmp_path: Path
) -> None:
    """As those of before: lines that can be read are taken, and the tokens are the checkpoint's all the same."""
    run, (job, reference) = Path(shutil.copytree(stopped, tmp_path / "run")), whole
    manifest = run / NEWEST / "manifest.json"
    facts = json.loads(manifest.read_text())
    del facts["beside"], facts["hash"]
    manifest.write_text(json.dumps({**facts, "hash": manifest_hash(facts)}))
    (run / "metrics.jsonl").unlink()
    cut(run / "samples.jsonl")
    result = evenflow.train(replace(job, out=run, resume=True))
    assert [own.tokens for own in result.metrics] == [own.tokens for own in reference.metrics[9:]]


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


@pytest.fixture(scope="module")
def others(whole: tuple[Job, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens of another text."""
    folder = tmp_path_factory.mktemp("others")
    (folder / "text.txt").write_text("".join(f"{n} plus {n} is {n + n}\n" for n in range(900)))
    job = replace(whole[0], data=folder / "text.txt")
    prepare_text(job, find_model(job.model), folder / "tokens", 32, Silent(), lambda: None)
    return folder / "tokens"


@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "tokens.json", "tokenizer.json"])
def test_tokens_of_another_text_are_not_trained_on(
    whole: tuple[Job, RunResult], stopped: Path, others: Path, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.copyfile(others / name, run / "tokens" / name)
    with pytest.raises(evenflow.InputError, match=f"{run}/tokens/{name} ".replace(".", r"\.")):
        evenflow.train(replace(whole[0], out=run, resume=True))


def test_nor_are_all_of_them_another_texts(
    whole: tuple[Job, RunResult], stopped: Path, others: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    shutil.rmtree(run / "tokens")
    shutil.copytree(others, run / "tokens")
    with pytest.raises(evenflow.InputError, match=r"tokens/tokens\.json is damaged"):
        evenflow.train(replace(whole[0], out=run, resume=True))


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


class Damages(Hears):
    """Flips a bit in a shard of a checkpoint as soon as it has its name: of each, or of that after one step."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.names = [f"step-{step:08d}" for step in steps]

    def saved(self, checkpoint: Path, write_s: float, hash_s: float) -> None:
        super().saved(checkpoint, write_s, hash_s)
        if checkpoint.name in self.names:
            self.names.remove(checkpoint.name)  # what is saved again after that step is left alone
            flip(checkpoint / "rank-1.safetensors")


IN_STEP_9 = ("forward", 34)  # a pass of it, when that after step 6 is the newest


def test_a_restart_passes_over_a_damaged_checkpoint(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path
) -> None:
    job, run, hears = whole[0], tmp_path / "run", Damages((6,))
    faults.plan(0, *IN_STEP_9, signal.SIGKILL)
    faults.pace(hears)
    result = evenflow.train(replace(job, out=run), hears)
    (fault,) = hears.starting("fault: ")
    assert "rank 0" in fault
    assert "was killed by SIGKILL while in step 9" in fault
    (warning,) = [line for line in hears.starting("warning: ") if " is slow: " not in line]
    assert f"{run / 'checkpoints/step-00000006/rank-1.safetensors'} is damaged: its hash is " in warning
    assert warning.endswith(f"; going on from {run / 'checkpoints/step-00000003'}, after step 3")
    assert hears.starting("restart ") == [
        f"restart 1 of 3: from {run / 'checkpoints/step-00000003'}, after step 3 of {STEPS}"
    ]
    assert [own.loss for own in result.metrics] == [own.loss for own in whole[1].metrics]
    assert same_weights(run, job.out)
    # The steps after it were taken again, and so it was saved again, beside the one that nobody goes on from.
    assert "damaged-00000006" in {own.name for own in (run / "checkpoints").iterdir()}


def test_nothing_is_started_again_where_all_are_damaged(
    whole: tuple[Job, RunResult], faults: Faults, tmp_path: Path
) -> None:
    """Nor is a run begun anew: what of it can still be had is in the damaged files."""
    run, hears = tmp_path / "run", Damages((3, 6))
    faults.plan(0, *IN_STEP_9, signal.SIGKILL)
    faults.pace(hears)
    lacks = re.escape(f"{run / 'checkpoints/step-00000006/rank-1.safetensors'} is damaged: its hash is ")
    says = rf"^rank 0 .* was killed by SIGKILL .*; and there is nothing to start again from: {lacks}.* 1 older ones$"
    with pytest.raises(evenflow.FaultError, match=says):
        evenflow.train(replace(whole[0], out=run), hears)
    assert not hears.starting("restart ")
    assert {"step-00000003", "step-00000006"} <= {own.name for own in (run / "checkpoints").iterdir()}
    assert not (run / "model").exists()
