"""Where a model comes from: a Hugging Face directory, a config.json, or a hub id, read as data and never as code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evenflow.errors import InputError
from evenflow.files import check_index, check_inside, check_shard_header
from evenflow.files.kinds import CONFIG, refuse_other
from evenflow.spec.presets import is_preset


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's configuration and where its files lie.

    Attributes:
        name: what the user called it.
        config: the Hugging Face configuration.
        folder: the directory with its weights and tokenizer; None where there is none.
        place: how it is found again from anywhere: a whole path, a hub id, or a preset's name.
        is_preset: whether it is known by its dimensions alone.
    """

    name: str
    config: PretrainedConfig
    folder: Path | None
    place: str = ""
    is_preset: bool = False

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files beside the config."""
        return tuple(sorted(self.folder.glob("*.safetensors"))) if self.folder else ()

    def check_weights(self) -> None:
        """Refuse a model whose weights exist but cannot be read, so that they are never drawn anew unnoticed.

        Raises:
            InputError: they are pickles, on the hub, or lead out of the folder.
        """
        if self.folder is not None:
            check_index(self.folder)
            for file in self.weight_files:
                check_inside(self.folder, file)
                check_shard_header(file)
        if self.weight_files:
            return
        if self.folder is None and "/" in self.name:
            raise InputError(
                f"{self.name} has its weights on the hub; downloaded into a folder they are read from there "
                "(MODEL is that folder then), and --from-scratch draws new ones"
            )
        pickles = sorted(self.folder.glob("pytorch_model*.bin")) if self.folder else []
        if pickles:
            raise InputError(
                f"{pickles[0]} is a pickle, which is not read; saved again as safetensors it would be, and "
                "--from-scratch draws new weights"
            )


_LONGEST_PATH = 1024
_MOST_CONFIG_BYTES = 2**24


def find_model(name: str) -> ModelSource:
    """Find MODEL: a directory with a config.json, a config.json, or a hub id.

    Raises:
        InputError: there is no such model, or it is not a causal LM that transformers knows.
    """
    path = Path(name).expanduser()
    if len(name) > _LONGEST_PATH:
        raise InputError(f"there is no model {name[:40]!r}...: a name of {len(name)} letters is no path")
    if path.is_dir():
        _check_links(path)
        return ModelSource(path.resolve().name, _read_config(path / "config.json"), path, str(path.resolve()))
    if path.is_file():
        if path.name == "config.json":
            _check_links(path.parent)
            return ModelSource(path.resolve().parent.name, _read_config(path), path.parent, str(path.resolve()))
        return ModelSource(path.stem, _read_config(path), None, str(path.resolve()))
    return ModelSource(name, _hub_config(name), None, name)


def _check_links(folder: Path) -> None:
    """Refuse a model whose settings, which are read and copied, are links out of its folder."""
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            check_inside(folder, folder / name)


def _read_config(path: Path) -> PretrainedConfig:
    if not path.is_file():
        raise InputError(f"{path.parent} has no config.json; a Hugging Face model directory has one")
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise InputError(f"{path} is no configuration: it has {path.stat().st_size} bytes")
        return read_config(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None


def read_config(text: str, path: str = "the configuration") -> PretrainedConfig:
    """Read the text of a config.json; `path` is where it comes from, for messages.

    Raises:
        InputError: it is no configuration of a causal LM that transformers knows.
    """
    try:
        facts = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None
    refuse_other(facts, CONFIG, path)
    if not isinstance(facts, dict) or not isinstance(facts.get("model_type"), str):
        raise InputError(f"{path} has no model_type; a Hugging Face config names its architecture there")
    model_type = facts.pop("model_type")
    # Code that the folder brings is never run: without auto_map only transformers' own classes are left.
    facts.pop("auto_map", None)
    try:
        config = AutoConfig.for_model(model_type, **facts)
    except ValueError as error:
        if "Unrecognized model identifier" not in str(error):
            raise InputError(f"{path}: {_one_line(error)}") from None
        raise InputError(
            f"{path}: architecture {model_type!r} is not known to this transformers; its model types are listed in "
            "transformers.CONFIG_MAPPING"
        ) from None
    except Exception as error:  # a config class may refuse its values in any way
        raise InputError(f"{path}: {_one_line(error)}") from None
    return _checked(config, path)


def _hub_config(name: str) -> PretrainedConfig:
    """The hub is asked only for what looks like its `organisation/name`: anything else is a mistyped path."""
    if is_preset(name):
        raise InputError(
            f"{name} is a preset, known by its dimensions alone: `evenflow plan`, `describe` and `rehearse` take it; "
            "here a model directory, a config.json or a hub id would do"
        )
    missing = InputError(f"there is no model {name!r}: no such directory or config.json")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise missing
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # network, hub and config errors of many kinds, all the user's to hear
        raise InputError(f"{missing}, nor could it be read from the hub ({_one_line(error)})") from None
    return _checked(config, name)


def _checked(config: PretrainedConfig, where: str) -> PretrainedConfig:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{where}: {config.model_type!r} is not a causal language model in transformers")
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
