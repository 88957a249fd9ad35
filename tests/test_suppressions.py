"""Why: a warning that is switched off without a reason is one that nobody can ever switch on again."""

from __future__ import annotations

import re
from pathlib import Path

import evenflow

SUPPRESSED = re.compile(r"# (?:noqa|type: ignore|pragma)")
WITH_REASON = re.compile(r"# (?:noqa: [A-Z0-9, ]+ - |type: ignore\[[a-z-]+\]  # )\w.*\w")


def test_each_suppressed_warning_says_why() -> None:
    package = Path(evenflow.__file__).parent
    lines = [
        f"{file.relative_to(package)}:{number}: {line.strip()}"
        for file in sorted(package.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if SUPPRESSED.search(line)
    ]
    assert lines
    assert [line for line in lines if not WITH_REASON.search(line)] == []
