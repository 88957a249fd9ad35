"""How often a run starts again: counted from its newest checkpoint, so that length wears no run out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evenflow.errors import FaultError, RankLostError
from evenflow.train import Job, Silent, supervise
from evenflow.train.patience import later_patience


class Attempts:
    """Starts of a run, each of which loses a rank, after a checkpoint or before."""

    def __init__(self, saves: list[bool]) -> None:
        self.saves = saves
        self.starts = 0
        self.recorder = SimpleNamespace(write=lambda: None)

    def __call__(self, *_: object) -> Attempts:
        return self

    @property
    def has_saved(self) -> bool:
        return self.saves[self.starts - 1]

    def run(self, _: object) -> None:
        self.starts += 1
        if self.starts <= len(self.saves):
            raise RankLostError(f"rank 1 is lost, {self.starts}")


@pytest.mark.parametrize(
    ("saves", "starts"),
    [
        ([True, True, True, True, True], None),
        ([True, False, True, False], None),
        ([False, False, False], 3),
        ([True, False, False, True], 3),
    ],
)
def test_restarts_are_counted_from_the_newest_checkpoint(
    saves: list[bool], starts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = Attempts(saves)
    monkeypatch.setattr(supervise, "Attempt", attempts)
    monkeypatch.setattr(supervise, "replace", lambda ready, **_: ready)
    job = replace(Job(model="m", data=tmp_path, out=tmp_path), restarts=2)
    ready: Any = SimpleNamespace(done_steps=0)
    signals = SimpleNamespace(received=None, hear=lambda: None)
    watcher: Any = SimpleNamespace(progress=Silent(), signals=signals)
    if starts is None:
        supervise.see_through(job, ready, None, watcher)  # type: ignore[arg-type]
        assert attempts.starts == len(saves) + 1
    else:
        with pytest.raises(FaultError, match="2 of 2 restarts were used since the newest checkpoint"):
            supervise.see_through(job, ready, None, watcher)  # type: ignore[arg-type]
        assert attempts.starts == starts


def test_a_rank_that_is_not_stopped_may_be_silent_for_as_long_as_a_page_of_a_slow_disk_takes() -> None:
    patience = later_patience(0.01, [0.01])
    assert patience.silent_s >= 30
    assert patience.stuck_s >= 30
