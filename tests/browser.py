"""A real headless Chromium for tests, driven by Selenium; the tests that use it skip where neither
browser nor driver is installed.

It reaches no network: every name but the loopback's is refused, and Selenium fetches nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(
    profile: Path, width: int = 1280, height: int = 900, dark: bool = False, javascript: bool = True
) -> Iterator[Any]:
    """A Selenium driver of a window of `width` × `height` CSS pixels with a new profile under
    `profile`, which should be empty.
    """
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    ]
    for flag in [*flags, f"--user-data-dir={profile}", f"--window-size={width},{height}"]:
        options.add_argument(flag)
    if not javascript:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = selenium.Chrome(options=options, service=selenium.ChromeService(executable_path=driver))
    try:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        # A headless window has a least width of its own; the metrics are what the page is laid out for.
        page.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        yield page
    finally:
        page.quit()


def console_errors(page: Any) -> list[str]:
    """What the page's console holds at the level of an error."""
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def picture(page: Any, path: Path) -> None:
    """The whole page, not only the window, as a PNG."""
    import base64

    path.write_bytes(
        base64.b64decode(page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"])
    )
