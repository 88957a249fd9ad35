"""How often a run starts again: counted from its newest checkpoint, so that length wears no run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evenflow.errors import FaultError, ImpossibleError, InputError, RankLostError, StoppedError
from evenflow.train import Job, Silent, supervise
from evenflow.train.patience import later_patience


class Start:
    """One of them."""

    def __init__(self, number: int, saves: str, error: type[Exception] | None) -> None:
        self.number, self.saves, self.error = number, saves, error
        self.happened: list[str] = []
        self.copies = SimpleNamespace(close=lambda: self.happened.append("let go"))
        self.has_saved = saves == "checkpoint"
        self.unfinished = int(saves in ("copied", "stopped"))

    def finish_save(self) -> bool:
        self.happened.append("finished")
        if self.saves == "stopped":
            raise StoppedError("stopped at once by a second signal", 2)
        return self.saves == "copied"

    def keep_last(self) -> None:
        self.happened.append("kept")

    def run(self, _: object) -> None:
        if self.error is not None:
            raise self.error(f"rank 1 is lost, {self.number}")


class Attempts:
    """Starts of a run, each of which loses a rank, unless it fails by itself.

    Args:
        saves: of each start, what it saves: a `checkpoint`, what was `copied` of one, `nothing`, or what is `stopped`.
    """

    def __init__(self, *saves: str, error: type[Exception] = RankLostError) -> None:
        self.saves = saves
        self.error = error
        self.made: list[Start] = []

    def __call__(self, *_: object) -> Start:
        number = len(self.made)
        fails = number < len(self.saves)
        self.made.append(Start(number + 1, self.saves[number] if fails else "nothing", self.error if fails else None))
        return self.made[-1]

    @property
    def starts(self) -> int:
        return len(self.made)


@pytest.fixture
def see_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Attempts], None]:
    """Follow such starts, two again at most."""

    def follow(attempts: Attempts) -> None:
        monkeypatch.setattr(supervise, "Attempt", attempts)
        monkeypatch.setattr(supervise, "replace", lambda ready, **_: ready)
        job = replace(Job(model="m", data=tmp_path, out=tmp_path), restarts=2)
        ready: Any = SimpleNamespace(done_steps=0)
        signals = SimpleNamespace(received=None, hear=lambda: None)
        watcher: Any = SimpleNamespace(progress=Silent(), signals=signals)
        supervise.see_through(job, ready, None, watcher)  # type: ignore[arg-type]

    return follow


@pytest.mark.parametrize(
    ("saves", "starts"),
    [
        (["checkpoint"] * 5, None),
        (["checkpoint", "nothing", "checkpoint", "nothing"], None),
        (["nothing"] * 3, 3),
        (["checkpoint", "nothing", "nothing", "checkpoint"], 3),
        (["nothing", "copied", "nothing", "copied"], None),
        (["nothing", "copied", "nothing", "nothing"], 4),
    ],
)
def test_restarts_are_counted_from_the_newest_checkpoint(
    saves: list[str], starts: int | None, see_through: Callable[[Attempts], None]
) -> None:
    attempts = Attempts(*saves)
    if starts is None:
        see_through(attempts)
        assert attempts.starts == len(saves) + 1
    else:
        with pytest.raises(FaultError, match="2 of 2 restarts were used since the newest checkpoint"):
            see_through(attempts)
        assert attempts.starts == starts


@pytest.mark.parametrize("kind", [RankLostError, FaultError, InputError, ImpossibleError])
@pytest.mark.parametrize("saves", ["nothing", "stopped"])  # and a second signal hides no fault
def test_what_was_copied_is_written_and_let_go_however_a_start_ends(
    see_through: Callable[[Attempts], None], kind: type[Exception], saves: str
) -> None:
    lost = Attempts(*[saves] * (3 if kind is RankLostError else 1), error=kind)
    with pytest.raises(kind, match=f"lost, {len(lost.saves)}"):
        see_through(lost)
    for start in lost.made:
        assert start.happened[0] == "finished"
        assert start.happened[-1] == "let go"
    assert ("kept" in lost.made[-1].happened) == (kind is RankLostError)
    well = Attempts()
    see_through(well)
    assert well.made[0].happened == ["let go"]


def test_a_rank_that_is_not_stopped_may_be_silent_for_as_long_as_a_page_of_a_slow_disk_takes() -> None:
    patience = later_patience(0.01, [0.01])
    assert patience.silent_s >= 30
    assert patience.stuck_s >= 30
