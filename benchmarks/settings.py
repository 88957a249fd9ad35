"""Settings of a user's choosing put into a configuration, just as a config.json that says them would."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig, modeling_utils
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from evenflow.errors import InputError
from evenflow.models import find_model, read_config

_LONGEST_VALUE = 60


def parse_setting(text: str) -> tuple[str, Any]:
    """`FIELD=VALUE` as a field and its value: JSON, else the text as it stands.

    Raises:
        InputError: it is not of that form.
    """
    field, sign, value = text.partition("=")
    if not sign or not field:
        raise InputError(f"--set {text!r} is no setting; FIELD=VALUE would do, as num_key_value_heads=2")
    try:
        return field, json.loads(value)
    except json.JSONDecodeError:
        return field, value


def configured(name: str, settings: Mapping[str, Any]) -> PretrainedConfig:
    """A type's defaults, or what a config.json or model directory says, with settings.

    The class makes all of it anew, so that what it works out of a field (kinds of layers, say) follows. A field of a
    part is named `part.field`; a dict given for a field takes the place of all of it.

    Raises:
        InputError: there is no such type, or it does not take a setting; the text names the field.
    """
    path = Path(name)
    if not path.exists():
        return _of_type(name, settings)
    config = find_model(name).config
    if not settings:
        return config
    file = path / "config.json" if path.is_dir() else path
    facts = json.loads(file.read_text())
    part = _text_part(config)
    holder = facts.setdefault(part, {}) if part else facts
    wanted = _facts(config, settings)

    def make(changes: Mapping[str, Any]) -> PretrainedConfig:
        own = {**holder, **changes}
        return read_config(json.dumps({**facts, part: own} if part else own), name)

    return _tried(type(config), wanted, settings, make)


def said(settings: Mapping[str, Any]) -> str:
    """Settings in a line, long values cut short."""
    texts = {field: json.dumps(value, default=str) for field, value in settings.items()}
    return ", ".join(
        f"{field} = {text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'}"
        for field, text in texts.items()
    )


def _of_type(name: str, settings: Mapping[str, Any]) -> PretrainedConfig:
    try:
        config = AutoConfig.for_model(name)
        config.get_text_config()
    except Exception as error:  # a class may not do without values of its own
        if "Unrecognized model identifier" not in str(error):
            raise InputError(
                f"{name}: its configuration alone makes no language model ({_line(error)}); a config.json would do"
            ) from error
        near = difflib.get_close_matches(name, transformers.CONFIG_MAPPING.keys())
        raise InputError(
            f"there is no model type {name!r} in transformers {transformers.__version__}, nor such a path"
            + (f"; {' or '.join(near)} would do" if near else "; a config.json or a model directory would do too")
        ) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{name!r} is not a causal language model in transformers")
    if not settings:
        return config
    part = _text_part(config)

    def make(changes: Mapping[str, Any]) -> PretrainedConfig:
        inner = {part: {"model_type": config.get_text_config().model_type, **changes}} if part else changes
        return AutoConfig.for_model(name, **inner)

    return _tried(type(config), _facts(config, settings), settings, make)


def _tried(kind: type, facts: Mapping[str, Any], settings: Mapping[str, Any], make: Any) -> PretrainedConfig:
    """What `make` makes of the facts; where it fails, the setting that it fails at alone is named."""
    try:
        config: PretrainedConfig = make(facts)
    except Exception as error:  # any class may refuse its values in any way
        culprits, reason = set(facts), error
        for field, value in facts.items():
            try:
                make({field: value})
            except Exception as alone:  # the same
                culprits, reason = {field}, alone
                break
        named = {own: value for own, value in settings.items() if own.partition(".")[0] in culprits}
        raise InputError(f"{kind.__name__} does not take {said(named)}: {_line(reason)}") from None
    return config


def _facts(config: PretrainedConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the class takes them: `part.field` inside what the part has by default."""
    text = config.get_text_config()
    facts: dict[str, Any] = {}
    for field, value in settings.items():
        outer, dot, own = field.partition(".")
        if not hasattr(text, outer) and not re.search(rf"\b{re.escape(outer)}\b", _source(type(config))):
            near = difflib.get_close_matches(outer, text.to_dict())
            raise InputError(
                f"{type(text).__name__} has no field {outer}, nor does its model's code name one"
                + (f"; {' or '.join(near)} would do" if near else "")
            )
        if not dot:
            facts[field] = value
            continue
        part = facts.get(outer, getattr(text, outer, None))
        known = part.to_dict() if isinstance(part, PretrainedConfig) else part
        if not isinstance(known, dict):
            raise InputError(f"{outer} of {type(text).__name__} has no fields, so there is no {field} to be set")
        if isinstance(part, PretrainedConfig) and not hasattr(part, own):
            near = difflib.get_close_matches(own, known)
            raise InputError(f"{type(part).__name__} has no field {own}" + (f"; {near[0]} would do" if near else ""))
        facts[outer] = {**known, own: value}
    return facts


def _source(kind: type[PretrainedConfig]) -> str:
    """The code that reads a configuration of a kind: its own, which may take what it does not keep, and its model's."""
    own = map(inspect.getmodule, (kind, MODEL_FOR_CAUSAL_LM_MAPPING[kind]))
    return "\n".join(inspect.getsource(module) for module in (*own, modeling_utils) if module is not None)


def _text_part(config: PretrainedConfig) -> str | None:
    """The field under which a configuration of several parts has that of its language model."""
    text = config.get_text_config()
    return next((name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is text), None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
