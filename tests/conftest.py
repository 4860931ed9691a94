"""Tests that need the network run only when asked for; one Chromium set-up for all that need a browser; of several
test processes (`make test`) each computes with one thread.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests import typed
from tests.forks import Forks

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

typed.install()

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="run tests/network too: real checkpoints from the Hub")
    parser.addoption("--device", default="cpu", help="where the tests that take a device compute, such as cuda")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "network" and not config.getoption("--network") else None


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test finds on the error stream depends neither on how fast the machine is nor on the test before."""
    monkeypatch.setattr("scalar_sae.console._quiet", False)
    monkeypatch.setattr("scalar_sae.console.INTERVAL", 3600.0)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where a test computes: `pytest --device cuda`; what it finds is compared with what the CPU finds."""
    return torch.device(str(request.config.getoption("--device")))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs in processes of their own."""
    running = Forks()
    yield running
    running.close()


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    """A headless Chromium, whose console must be empty at the end; without one, skipped; in .ci/run it fails."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("NOTHING_MAY_BE_MISSING"):
            pytest.fail("chromium or chromedriver is missing")
        pytest.skip("no chromium here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"]
    flags += ["disable-component-update", "disable-sync", f"user-data-dir={tmp_path_factory.mktemp('profile')}"]
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield running
        assert running.get_log("browser") == []
    finally:
        running.quit()
