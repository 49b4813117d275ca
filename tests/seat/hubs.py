"""JupyterHub as README says: installed beside the lab, running in an engine's network, logged into by a browser.

As a program, `python -m seat.hubs ADDRESS NAME TOKEN` logs in with a real browser, waits for a chapter, prints the page's
address, and then the status of somebody else's seat.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv

from seat import seats

from labkit.ground import state

HUB = state.REPO / "vagrant" / "hub"
ADDRESS = "http://127.0.0.1:8000"


def install(folder):
    """Install JupyterHub and its proxy in `folder`, as README says; return the PATH that has them."""
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", HUB / "requirements.txt"], check=True, capture_output=True)
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder / "npm"]
    subprocess.run([*npm, "configurable-http-proxy"], check=True, capture_output=True)
    return f"{folder}/venv/bin:{folder}/npm/node_modules/.bin:{os.environ['PATH']}"


@contextlib.contextmanager
def running(docker, folder, users):
    """Run a hub for `users`, {name: token}; its files are in `folder`."""
    path = install(folder)
    (folder / "users.txt").write_text("".join(f"{name} {token}\n" for name, token in users.items()))
    own = {"PATH": path, "LAB_USERS": str(folder / "users.txt"), "DOCKER_HOST": f"unix://{docker.socket}"}
    command = [*inside(docker), "jupyterhub", "-f", HUB / "jupyterhub_config.py"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=os.environ | own, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while seats.status(docker, f"{ADDRESS}/hub/login") != 200:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield ADDRESS
    finally:
        process.terminate()
        process.wait()


def inside(docker):
    """Return the words that put a command into the engine's network."""
    return ["nsenter", "-t", str(seats.pid(docker)), "-n"]


def log_in(docker, name, token):
    """Log in with a browser; return the page's address and the status of the other user's seat."""
    command = [*inside(docker), sys.executable, "-m", "seat.hubs", ADDRESS, name, token]
    paths = os.environ | {"PYTHONPATH": f"{state.REPO}:{state.REPO}/tests"}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def _browse(address, name, token):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_context().new_page()
        page.goto(address)
        page.fill("#username_input", name)
        page.fill("#password_input", token)
        page.click("#login_submit")
        page.wait_for_url(re.compile(f".*/user/{name}/lab.*|.*/hub/login.*"), timeout=120_000)
        if "/hub/login" not in page.url:
            page.wait_for_selector(".jp-NotebookPanel", timeout=120_000)
        print(page.url)
        for other in {"ada", "bob"} - {name}:
            print(page.request.get(f"{address}/user/{other}/api/contents").status)
        browser.close()


if __name__ == "__main__":
    _browse(*sys.argv[1:])
