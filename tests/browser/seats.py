"""A participant's seat: a `lab up` of its own, and a notebook in a browser, used by mouse and keyboard."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(root):
    """Serve the chapters from a LABKIT_ROOT of one's own."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "labkit", "up", "--port", str(port)],
        env=os.environ | {"LABKIT_ROOT": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = next((line.strip() for line in process.stdout if "token=" in line), None)
        assert address, "lab up did not start"
        yield Seat(address, root)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


class Seat:
    """Where a participant sits: the address with its token, and the folder with all of their files."""

    def __init__(self, address, root):
        self.address = address
        self.root = Path(root)

    def page_of(self, name):
        """Return the address of another notebook."""
        before, _, token = self.address.partition("?")
        # reset: JupyterLab remembers which tabs were open, and the test before had its own.
        return f"{before.rpartition('/lab')[0]}/lab/tree/{name}?reset&{token}"


class Notebook:
    """A notebook in JupyterLab, used as a person does: by mouse and keyboard."""

    def __init__(self, page, address):
        self.page = page
        page.goto(address)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        page.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for()
        self.wait_idle()

    def wait_idle(self, seconds=60):
        """Wait until no cell waits to be run and the kernel is idle."""
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=1000 * seconds)
        deadline = time.monotonic() + seconds
        while any("[*]" in prompt for prompt in self.page.locator(".jp-InputPrompt").all_inner_texts()):
            assert time.monotonic() < deadline, "cells still run"
            self.page.wait_for_timeout(100)

    def cell(self, text):
        """Return the code cell whose source has this text."""
        return self.page.locator(".jp-CodeCell").filter(has=self.page.locator(".jp-InputArea", has_text=text)).first

    def write(self, cell, source):
        """Replace a cell's text by typing."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def run(self, cell, seconds=60):
        """Run one cell; return what it printed."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(200)
        self.wait_idle(seconds)
        return self.output(cell)

    def output(self, cell):
        """Return the text below a cell."""
        return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())

    def tab_to(self, selector, backwards=False, most=60):
        """Press Tab until the focus has moved to something that the CSS selector describes."""
        for _ in range(most):
            self.page.keyboard.press("Shift+Tab" if backwards else "Tab")
            if self.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} can't be reached by the keyboard")

    def menu(self, *names):
        """Click through a menu."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=names[0]).first.click()
        for name in names[1:]:
            self.page.locator(".lm-Menu-itemLabel", has_text=name).first.click()

    def run_all(self, seconds=180):
        """Run all cells and wait; return the names of the errors."""
        self.menu("Run", "Run All Cells")
        self.page.wait_for_timeout(500)
        self.wait_idle(seconds)
        return self.errors()

    def errors(self):
        """Return the first line of each error on the page."""
        errors = self.page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')
        return [text.strip().splitlines()[0] for text in errors.all_inner_texts()]

    def restart(self):
        """Restart the kernel, as the menu does."""
        self.menu("Kernel", "Restart Kernel…")
        self.page.locator(".jp-Dialog button", has_text="Restart").click()
        self.page.wait_for_timeout(500)
        self.wait_idle()
