"""What torchrun's starts of one run leave for the next, in its store: who leads, which folder is theirs, what ended it.

torchrun starts all workers again when one of them fails, whatever it failed of. Each host's agent counts its own
restarts, and one that ends its workers because another host asks for a new start has not counted that, so no two
workers need have the same number: nothing is named by it. The leading worker counts the starts instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in torch's stubs

from evenflow.errors import EvenflowError, FaultError, RankLostError, WorkerLostError, first_line


@dataclass(frozen=True, slots=True)
class End:
    """How an earlier start ended the run.

    Attributes:
        code: the exit code.
        why: in words.
    """

    code: int
    why: str

    def error(self) -> EvenflowError:
        """What a start that comes too late leaves with."""
        error = FaultError(f"nothing is left to start again: {self.why}")
        error.exit_code = self.code
        return error


class Starts:
    """The starts of one run by one torchrun; what is kept is gone with that torchrun's store.

    Args:
        store: torchrun's.
        run: the name of its job there.

    Raises:
        FaultError: by whatever reads, counts or announces: the store does not answer.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._at = f"evenflow/{run}"

    def begin(self) -> int:
        """Count another start; returns its number, from 1. Only the leading worker does."""
        with _answering():
            return int(self._store.add(f"{self._at}/starts", 1))

    def announce(self, facts: dict[str, Any]) -> None:
        """Say where the leading worker is."""
        self._set("lead", facts)

    def leader(self) -> dict[str, Any] | None:
        """Where the leading worker is, or one that is gone was; None while none has said."""
        found = self._get("lead")
        return found if isinstance(found, dict) else None

    def took(self, folder: Path) -> None:
        """The run's folder is this run's: it was empty, or a run to be resumed, and is locked."""
        with suppress(FaultError):  # torchrun's agent is gone: nobody will start this run again
            self._set("folder", str(folder.resolve()))

    def gave_back(self) -> None:
        """Nothing of this run is left in its folder, which is anybody's now."""
        with suppress(FaultError):
            self._set("folder", None)

    def planned(self, folder: Path) -> None:
        """The plan in the folder is this run's; before, it may be that of a run that is resumed."""
        with suppress(FaultError):
            self._set("planned", str(folder.resolve()))

    def has_planned(self, folder: Path) -> bool:
        """Whether an earlier start wrote the plan that is in this folder."""
        return self._get("planned") == str(folder.resolve())

    def has_taken(self, folder: Path) -> bool:
        """Whether an earlier start took this folder, so that what lies there is its own."""
        return folder.is_dir() and self._get("folder") == str(folder.resolve())

    def end(self) -> End | None:
        """How an earlier start ended the run, where one did."""
        found = self._get("end")
        return End(**found) if isinstance(found, dict) else None

    def ended(self, error: BaseException | None, asked: bool = False) -> None:
        """Note how this start ended, where no other one should follow.

        What is lost with a worker or its host is worth another start. So is an error that is none of ours, as nothing
        is known of it.

        Args:
            error: what it ended with; None for well.
            asked: whether the run had been asked to stop: ranks that are lost then may be so by the stopping.
        """
        lost: tuple[type[FaultError], ...] = (WorkerLostError, RankLostError) if asked else (WorkerLostError,)
        if error is None:
            end = End(0, "the run is complete")
        elif isinstance(error, EvenflowError) and not isinstance(error, lost):
            end = End(error.exit_code, str(error))
        else:
            return
        with suppress(FaultError):
            self._set("end", {"code": end.code, "why": end.why})

    def _set(self, name: str, value: object) -> None:
        with _answering():
            self._store.set(f"{self._at}/{name}", json.dumps(value))

    def _get(self, name: str) -> object:
        key = f"{self._at}/{name}"
        with _answering():
            found: object = json.loads(self._store.get(key)) if self._store.check([key]) else None
            return found


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise FaultError(f"torchrun's store is gone, and its agent with it: {first_line(error)}") from None
