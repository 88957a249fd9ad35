"""A real browser for all tests; where there is none, tests that need one are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.browser import missing_browser, start_browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests."""
    if lacks := missing_browser():
        pytest.skip(lacks)
    driver = start_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()
