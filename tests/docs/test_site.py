"""The site builds without a warning: no dead link, no page that the menu lacks."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from evenflow import __version__
from tests.docs.blocks import PAGES, page_order

ROOT = PAGES.parent


@pytest.mark.slow
@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed; pip install '.[docs]'")
def test_the_site_builds(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stdout + built.stderr
    first = (tmp_path / "site" / "index.html").read_text()
    words_of = re.sub(r"<[^>]+>", "", first)  # commands are coloured word by word
    assert "evenflow train examples/small-llama" in words_of
    assert "0.1.0" in (tmp_path / "site" / "changes.html").read_text()
    assert "fonts.googleapis.com" not in first


def test_every_page_is_in_the_menu() -> None:
    assert {page.name for page in page_order()} == {page.name for page in PAGES.glob("*.md")}


def test_the_changes_begin_with_this_version() -> None:
    heading = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert heading.removeprefix("## ") == __version__
