"""Reads back the constants of Python files that were exported, without running them."""

from __future__ import annotations

import ast
from typing import Any


def read_constants(text: str) -> dict[str, Any]:
    """The literals that a module's top level gives names to."""
    found: dict[str, Any] = {}
    for line in ast.parse(text).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = ast.literal_eval(line.value)
    return found


def docstring_text(text: str) -> str:
    """A name as it may stand in a docstring: on one line, and ending none."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())
