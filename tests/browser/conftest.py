"""What browser tests ask for: a seat, a page at a projector's size, a folder for screenshots."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from seats import Notebook, served

# Without these Chromium asks for updates, and as root it needs --no-sandbox.
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="session")
def shots():
    """Where screenshots go: LAB_SHOTS, or a folder that is thrown away."""
    folder = os.environ.get("LAB_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


@pytest.fixture(scope="module")
def seat(tmp_path_factory):
    """One participant's `lab up`."""
    with served(tmp_path_factory.mktemp("seat")) as one:
        yield one


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not here: apt-get install chromium (`lab test` does)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


@pytest.fixture
def notebook(page, seat):
    """Open a chapter by its name; what returns can be clicked and read."""

    def open_notebook(name):
        return Notebook(page, seat.page_of(name))

    return open_notebook
