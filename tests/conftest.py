"""What tests share: tiny models, a little text, and one fork server for all ranks of a session."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evenflow.launch import ForkServer, shared_server

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def pytest_configure(config: pytest.Config) -> None:
    """Only `make gpu` computes on GPUs: what other tests say of cores holds for ranks on processors."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def server() -> ForkServer:
    """The process that forks ranks; it ends with the session."""
    return shared_server()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles measured by tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Make a model directory with a config.json: tiny Llama with some settings changed."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "tiny-llama"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**TINY_LLAMA, **changes}))
        return folder

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text file of some thousand tokens."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}: {number * number} is the square of {number}\n" for number in range(800)))
    return path
