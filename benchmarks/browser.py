"""A real browser, headless and with a profile of its own: for the benchmark of the page, and for its tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,1700", "--force-device-scale-factor=1",
)  # fmt: skip


def missing_browser() -> str:
    """What is not here of a browser and what drives it; empty where all is."""
    try:
        import selenium  # noqa: F401 - whether it is there
    except ImportError:
        return "selenium is not installed"
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        return "there is no browser here: Debian's chromium and chromium-driver would do"
    return ""


def start_browser(profile: Path) -> Any:
    """Chromium by its own driver."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
