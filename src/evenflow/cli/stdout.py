"""One JSON object on standard output, for commands that need no tables and should answer at once."""

from __future__ import annotations

import json
from typing import Any


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, allow_nan=False))
