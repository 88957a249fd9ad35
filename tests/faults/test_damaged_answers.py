"""Damage to which tokens are learned, and to those that a run evaluates on: named, and no loss is taken of it.

Of the training's own tokens nothing is made again, since other ones would make it another run. Those of --eval-data
are: the data is there, and its tokens are the same ones then.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import evenflow
from evenflow.models import find_model
from evenflow.train import Job, RunResult
from evenflow.train.prepare import prepare_held_out, reopen_text
from tests.faults.conftest import Hears, same_weights
from tests.faults.test_damage import cut, flip

SEQ = 32
DAMAGES = pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=lambda own: own.__name__)
Asks = tuple[Job, RunResult, Path]


def questions(file: Path, numbers: range) -> Path:
    lines = ({"prompt": f"Q: what is {n} and {n}? ", "answer": f"A: {2 * n}, I think"} for n in numbers)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def asks(whole: tuple[Job, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Asks:
    """A run of which answers alone are learned and others are evaluated, and its folder as it was after step 6."""
    folder = tmp_path_factory.mktemp("answers")
    job = replace(
        whole[0],
        data=questions(folder / "learned.jsonl", range(160)),
        eval_data=questions(folder / "others.jsonl", range(200, 230)),
        eval_every=3,
        out=folder / "run",
    )
    evenflow.train(replace(job, stop_at=6))
    stopped = Path(shutil.copytree(job.out, folder / "stopped"))
    result = evenflow.train(replace(job, resume=True))
    assert [own.step for own in result.metrics if own.eval_loss is not None] == [3, 6, 9, 12]
    return job, result, stopped


@DAMAGES
def test_what_is_learned_is_not_guessed(asks: Asks, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    job, _, stopped = asks
    tokens = Path(shutil.copytree(stopped / "tokens", tmp_path / "tokens"))
    damage(tokens / "learned.bin")
    with pytest.raises(evenflow.InputError, match=rf"^{tokens}/learned\.bin"):
        reopen_text(job, find_model(job.model), tokens, SEQ)


def test_a_run_does_not_go_on_with_other_answers(asks: Asks, tmp_path: Path) -> None:
    job, _, stopped = asks
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    flip(run / "tokens/learned.bin")
    with pytest.raises(evenflow.InputError, match=r"tokens/learned\.bin is damaged: its hash is"):
        evenflow.train(replace(job, out=run, resume=True))


@DAMAGES
@pytest.mark.parametrize("name", ["tokens.bin", "documents.bin", "learned.bin", "tokens.json"])
def test_what_is_evaluated_is_made_again(asks: Asks, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    job, _, stopped = asks
    run, hears = Path(shutil.copytree(stopped, tmp_path / "run")), Hears()
    text = reopen_text(job, find_model(job.model), run / "tokens", SEQ)
    damage(run / "eval-tokens" / name)
    prepare_held_out(replace(job, resume=True), find_model(job.model), text, run, hears, lambda: None)
    (warning,) = hears.starting("warning: ")
    assert warning.startswith(f"warning: {run / 'eval-tokens' / name}")
    assert warning.endswith(f"; the tokens of {job.eval_data} are made again")
    for file in (stopped / "eval-tokens").iterdir():
        assert (run / "eval-tokens" / file.name).read_bytes() == file.read_bytes()


def test_tokens_that_are_whole_are_not_spoken_of(asks: Asks, tmp_path: Path) -> None:
    """Nor is it where nothing was evaluated before."""
    job, _, stopped = asks
    run, hears = Path(shutil.copytree(stopped, tmp_path / "run")), Hears()
    text = reopen_text(job, find_model(job.model), run / "tokens", SEQ)
    prepare_held_out(replace(job, resume=True), find_model(job.model), text, run, hears, lambda: None)
    shutil.rmtree(run / "eval-tokens")
    prepare_held_out(replace(job, resume=True), find_model(job.model), text, run, hears, lambda: None)
    assert not hears.starting("warning: ")


def test_a_run_goes_on_evaluating_what_it_did(asks: Asks, tmp_path: Path) -> None:
    job, reference, stopped = asks
    run, hears = Path(shutil.copytree(stopped, tmp_path / "run")), Hears()
    flip(run / "eval-tokens/tokens.bin")
    result = evenflow.train(replace(job, out=run, resume=True), hears)
    (warning,) = [line for line in hears.starting("warning: ") if " is slow: " not in line]
    assert f"{run / 'eval-tokens/tokens.bin'} is damaged: its hash is " in warning
    assert [(own.loss, own.eval_loss) for own in result.metrics] == [
        (own.loss, own.eval_loss) for own in reference.metrics
    ]
    assert same_weights(run, job.out)
