"""A wish to stop that several hosts hear of is one wish; only being asked twice ends a run at once."""

from __future__ import annotations

import os
import signal

import pytest

from evenflow.errors import StoppedError
from evenflow.train.signals import StopSignals

ELSEWHERE, OWN = "elsewhere", "own"


@pytest.mark.parametrize(
    ("told", "again"),
    [
        ((ELSEWHERE, OWN), False),
        ((OWN, ELSEWHERE), False),
        ((ELSEWHERE, OWN, ELSEWHERE), False),
        ((OWN, OWN), True),
        ((ELSEWHERE, OWN, OWN), True),
    ],
)
def test_only_a_second_own_signal_ends_at_once(told: tuple[str, ...], again: bool) -> None:
    with StopSignals() as signals:
        for where in told:
            if where == OWN:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                signals.heard_elsewhere(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        assert signals.again == again
        if again:
            with pytest.raises(StoppedError, match="at once by a second signal"):
                signals.check_again()
        else:
            signals.check_again()
