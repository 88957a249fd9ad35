"""profile.json is refused where its figures do not agree with each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import evenflow
from evenflow.errors import InputError
from evenflow.files import load_profile, save_profile


def test_speeds_are_one_of_each_process(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    save_profile(evenflow.profile(make_model(), 2, seq_length=16), path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "speeds": [1.0]}))
    with pytest.raises(InputError, match=r"profile\.json: speeds: there are 1 of 2 processes; one of each would do"):
        load_profile(path)
    path.write_text(json.dumps({**content, "speeds": [1.0, 0.5]}))
    assert load_profile(path).speeds == (1.0, 0.5)
