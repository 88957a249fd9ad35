"""Models, checkpoints and data that mean harm: none of their code runs, nothing outside is read, all refused fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from evenflow.errors import InputError
from evenflow.files import check_inside
from evenflow.models import find_model
from evenflow.train.corpus import Corpus
from evenflow.train.save import finish_model_folder
from tests.security.hostile import COMMANDS, WRONG_CONFIGS

MODELS = (
    "unknown-with-code", "pickle", "pickle-by-another-name", "huge-header", "lying-header", "link", "relative-link",
    "device", "pipe", "absolute-index", "relative-index", "config-link", "config-pipe", "huge-config", "deep-config",
    "generation-link", "merges-link", "tokenizer-link", "template-link", "tokenizer-with-code",
)  # fmt: skip
CHECKPOINTS = ("absolute", "relative", "link", "huge-header", "pickle", "manifest-link")
NAMES = (
    *(f"train {name}" for name in MODELS),
    *(f"{command} {name}" for command in ("describe", "plan", "check") for name in WRONG_CONFIGS),
    *(f"checkpoint {name}" for name in CHECKPOINTS),
)
ACCEPTED = tuple(f"accepted {command}" for command in COMMANDS)
OWN = ("socket.connect", "subprocess.Popen")  # of a run: it talks to its ranks


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.security.hostile", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_all_cases_were_tried_and_none_of_their_code_ran(tried: dict[str, Any]) -> None:
    assert sorted(tried["results"]) == sorted((*NAMES, *ACCEPTED))
    assert not tried["ran"]  # by no process: the code leaves a mark wherever it runs


@pytest.mark.parametrize("name", NAMES)
def test_it_is_refused_within_a_second_and_nothing_forbidden_is_done(tried: dict[str, Any], name: str) -> None:
    own = tried["results"][name]
    assert own["code"] == InputError.exit_code, own["said"]
    assert own["said"].count("\n") == 1, own["said"]
    assert name.partition(" ")[2] in own["said"]  # the folder, in the path that is named
    assert own["done"] == []
    assert own["seconds"] < 1, own


@pytest.mark.parametrize("name", ACCEPTED)
def test_code_beside_a_model_that_is_accepted_does_not_run(tried: dict[str, Any], name: str) -> None:
    own = tried["results"][name]
    assert own["code"] == 0, own["said"]
    assert [what for what in own["done"] if not what.startswith(OWN)] == []
    assert tried["steps"] == 2


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path) -> None:
    """Its auto_map is passed over: what is described is transformers' own class."""
    from tests.security.hostile import LLAMA, REMOTE

    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "auto_map": REMOTE}))
    (tmp_path / "modeling_evil.py").write_text("raise SystemExit('code ran')")
    from evenflow.models import find_model

    assert type(find_model(str(tmp_path)).config).__module__.startswith("transformers.models.llama")


def test_what_is_copied_beside_a_trained_model_is_no_link_out_of_its_folder(tmp_path: Path) -> None:
    """Put there while the run went on: it was refused before otherwise."""
    from tests.security.hostile import LLAMA

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    source = find_model(str(model))
    (tmp_path / "secret").write_text("the secret")
    for name in ("generation_config.json", "chat_template.jinja"):
        out = tmp_path / name
        out.mkdir()
        (out / "rank-0.safetensors").write_bytes(b"")
        (model / name).symlink_to(tmp_path / "secret")
        with pytest.raises(InputError, match=f"{name} leads out of its folder"):
            finish_model_folder(out, tmp_path / "done", source, Tokenizer(BPE()), model, None, [])
        assert "the secret" not in "".join(path.read_text() for path in out.iterdir())
        (model / name).unlink()


def test_a_config_that_is_named_itself_is_no_link_out_of_its_folder(tmp_path: Path) -> None:
    from tests.security.hostile import LLAMA

    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").write_text(json.dumps(LLAMA))
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"config\.json leads out of its folder"):
        find_model(str(tmp_path / "model" / "config.json"))


def test_a_hub_cache_snapshot_is_as_good_as_a_folder(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    check_inside(snapshot, snapshot / "config.json")
    (tmp_path / "models--a--b" / "elsewhere").write_text("{}")
    (snapshot / "other.json").symlink_to("../../elsewhere")
    with pytest.raises(InputError, match=r"leads out of its folder, to .*elsewhere"):
        check_inside(snapshot, snapshot / "other.json")


def test_a_data_set_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret " * 50)
    texts, rows = tmp_path / "texts", tmp_path / "rows"
    texts.mkdir()
    (texts / "own.txt").write_text("own text")
    (texts / "link.txt").symlink_to(tmp_path / "secret")
    (texts / "above").symlink_to(tmp_path)
    assert [own.text for own in Corpus(texts).documents()] == ["own text"]
    rows.mkdir()
    (rows / "state.json").write_text('{"_data_files": [{"filename": "../secret"}]}')
    (rows / "data.arrow").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"data\.arrow leads out of its folder"):
        Corpus(rows)
