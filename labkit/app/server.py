"""One JupyterLab: started with files of our own only, asked whether it answers, and stopped.

Everything that it writes about itself goes below labkit's folders, never below
~/.jupyter: settings that are kept in /var/lib/labkit/jupyter, and in
/run/labkit/jupyter the log and `server.json`, by which others find it.
"""

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from labkit.ground import proc, state, syscalls
from labkit.ground.errors import BadValue, InUse, LabError, Unsupported, from_oserror
from labkit.ground.typed import Any, NoReturn
from labkit.lessons import coursework

REPO = state.REPO

# What a room needs: letters for the last row, and nothing that pops up.
_ROOM = {
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/terminal-extension:plugin": {"fontSize": 16},
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none",  # with any other the page is blank for a while when one scrolls fast
        "codeCellConfig": {"lineWrap": True},
        "autoStartDefaultKernel": True,  # else who runs a cell very soon is asked for a kernel
    },
    "@jupyterlab/docmanager-extension:plugin": {
        "autosaveInterval": 20,
        "defaultViewers": {"markdown": "Markdown Preview"},  # the cheat sheet and the glossary are to be read
    },
    "@jupyterlab/filebrowser-extension:browser": {"showLastModifiedColumn": False, "singleClickNavigation": True},
}


# Its theme looks for these sizes only among what a user has set, not among the defaults above.
_LETTERS = {"overrides": {"code-font-size": "15px", "content-font-size1": "16px", "ui-font-size1": "14px"}}

SERVER = state.kind("run/jupyter/server.json", {"host": str, "port": int, "token": str, "pid": int, "ticks": int})
Record = dict[str, Any]  # host, port, token; and pid and ticks of who serves
Process = subprocess.Popen[bytes]
BESIDE = "beside"  # the name of a workspace: a chapter on the left, a terminal on the right


def running() -> Record | None:
    """Return the record of the server that runs, {host, port, token, …}, or None."""
    record = state.read(_record(), SERVER)
    if record and proc.is_running(record["pid"], record["ticks"]) and answers(record):
        return record
    return None


def answers(record: Record) -> bool:
    """Tell whether JupyterLab, and no other server, answers on that port and to that token."""
    import urllib.request  # dear, and few commands need it

    url = f"http://{record['host']}:{record['port']}/api/status"
    request = urllib.request.Request(url, headers={"Authorization": f"token {record['token']}"})
    # A proxy from the environment has no business here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return "kernels" in json.load(answer)
    except (OSError, ValueError):
        return False


def start(ip: str, port: int) -> tuple[Process, Record]:
    """Start JupyterLab and wait until it answers; return its process and its record."""
    _check_folder()
    _check_port(ip, port)
    host = "127.0.0.1" if ip == "0.0.0.0" else ip
    # Who made this machine may have told somebody the token already.
    token = os.environ.get("LAB_TOKEN") or secrets.token_hex(24)
    record = {"host": host, "port": port, "token": token}
    process = _launch(ip, record)
    try:
        _wait_until_up(process, record)
        record |= {"pid": process.pid, "ticks": proc.start_ticks(process.pid)}
        state.write_json(_record(), record)
    except BaseException:
        stop(process)
        raise
    return process, record


def stop(process: Process, patience: float = 15) -> None:
    """End JupyterLab and its kernels; by force only if it doesn't listen."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _record().unlink(missing_ok=True)


def log() -> Path:
    """Return the path of what JupyterLab says."""
    return state.run_dir("jupyter") / "log"


def _record() -> Path:
    return state.run_dir("jupyter") / "server.json"


def _check_folder() -> None:
    if os.pathsep in str(REPO):
        raise BadValue(
            f"the folder {REPO} has a colon in its name, and Python's search path can't have one",
            "rename or move it",
        )


def _check_port(ip: str, port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ip, port))
        except OverflowError:
            raise BadValue(f"there is no port {port}", "ports go from 1 to 65535") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise from_oserror(error, f"listening on {ip} port {port}", "choose another --ip") from None
            raise InUse(
                f"port {port} is taken{_listener(port)}",
                f"end that, or choose another: `lab up --port {port + 1}`",
            ) from None


def _listener(port: int) -> str:
    """Return " by NAME (pid N)" of the process that listens on a TCP port, as far as /proc tells."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):  # 0A: listening
                sockets.add(f"socket:[{fields[9]}]")
    for pid in proc.pids():
        with contextlib.suppress(OSError):
            for fd in os.scandir(f"/proc/{pid}/fd"):
                if os.readlink(fd.path) in sockets:
                    return f" by {proc.process(pid).name} (pid {pid})"
    return ""


def become_hubs() -> NoReturn:
    """Go on as the seat of a JupyterHub, which started this container, says where to listen, and asks who comes."""
    try:
        import jupyterhub  # noqa: F401
    except ImportError:
        raise Unsupported("JupyterHub started this, and has no package here", "vagrant/hub/Dockerfile has") from None
    environment = _prepare({})
    os.chdir(coursework.folder())
    os.execve(sys.executable, [sys.executable, "-m", "jupyterhub.singleuser", "--allow-root"], environment)


def _prepare(listening: dict[str, Any]) -> dict[str, str]:
    """Write JupyterLab's settings, and those that say where it listens; return its environment."""
    home = state.lib_dir("jupyter")
    (home / "labconfig").mkdir(exist_ok=True)
    quiet = {
        # The pop-up that asks whether to fetch news, and then does.
        "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True},
        # Whether it should build itself anew, with a compiler that is not here.
        "buildAvailable": False,
        "buildCheck": False,
    }
    state.write_json(home / "labconfig" / "page_config.json", quiet)
    state.write_json(home / "labconfig" / "default_setting_overrides.json", _ROOM)
    letters = home / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    if not letters.exists():  # from then on they are as the participant likes them
        letters.parent.mkdir(parents=True, exist_ok=True)
        state.write_json(letters, _LETTERS)
    _arrange(home / "lab" / "workspaces")
    state.write_json(home / "jupyter_server_config.json", _settings(listening))
    return os.environ | {
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(state.run_dir("jupyter", "runtime")),
        "IPYTHONDIR": str(home / "ipython"),
        "PROMPT_DIRTRIM": "1",  # the terminal's prompt shows one folder of the path, not all of it
        "PATH": f"{_lab_on_path()}:{os.environ['PATH']}",
    }


def _launch(ip: str, record: Record) -> Process:
    server = {"ip": ip, "port": record["port"], "port_retries": 0}
    environment = _prepare({"ServerApp": server, "IdentityProvider": {"token": record["token"]}})
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    with open(log(), "wb") as words:
        # A session of its own: Ctrl-C must reach only us, or JupyterLab stops to ask.
        return subprocess.Popen(
            command,
            cwd=coursework.folder(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def _arrange(folder: Path) -> None:
    """Write the workspace BESIDE, unless there is one: from then on it is as the participant left it."""
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    if list(folder.glob(f"{BESIDE}-*")):
        return
    first = f"notebook:{coursework.chapters()[0].name}" if coursework.chapters() else ""
    areas = [{"type": "tab-area", "currentIndex": 0, "widgets": [name]} for name in (first, "terminal:1")]
    dock = {"type": "split-area", "orientation": "horizontal", "sizes": [0.62, 0.38], "children": areas}
    left = {"collapsed": False, "visible": True, "current": "filebrowser", "widgets": ["filebrowser"]}
    data = {
        "layout-restorer:data": {
            "main": {"dock": dock, "current": first},
            "left": left,
            "relativeSizes": [0.2, 0.8, 0],
        },
        "file-browser-filebrowser:cwd": {"path": ""},
        first: {"data": {"path": first.partition(":")[2], "factory": "Notebook"}},
        "terminal:1": {"data": {"name": "1"}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    WorkspacesManager(str(folder)).save(BESIDE, json.dumps({"data": data, "metadata": {"id": BESIDE}}))


def _settings(listening: dict[str, Any]) -> dict[str, Any]:
    return listening | {
        "ServerApp": listening.get("ServerApp", {})
        | {
            "root_dir": str(coursework.folder()),
            # bash as a login shell would set PATH anew, without `lab` on it.
            "terminado_settings": {"shell_command": ["/bin/bash"]},
        },
        # What was passed is shown by the chapters: the file is no chapter of theirs.
        "ContentsManager": {"hide_globs": ["__pycache__", "*.pyc", "*~", "progress.json"]},
        "LabApp": {"extension_manager": "readonly", "default_url": first_page()},
        # It would call npm to look for servers of other languages.
        "LanguageServerManager": {"autodetect": False},
    }


def first_page() -> str:
    """Return the path of the page that opens first: chapter 00, with its list of chapters."""
    first = next(iter(coursework.chapters()), None)
    return f"/lab/tree/{first.name}" if first else "/lab"


def _die_with_parent() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)


def _lab_on_path() -> Path:
    """Return a folder that holds nothing but a link to `lab`."""
    folder = state.run_dir("jupyter", "bin")
    link = folder / "lab"
    link.unlink(missing_ok=True)
    link.symlink_to(REPO / "vagrant" / "lab")
    return folder


def _wait_until_up(process: Process, record: Record, patience: float = 900) -> None:
    """Return when it answers.

    The patience is that of an emulated and busy machine; one that has ended is not waited for.
    """
    deadline = time.monotonic() + patience
    while not answers(record):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log().read_text(errors="replace").strip().splitlines()
            raise LabError(
                f"JupyterLab did not start: {lines[-1] if lines else 'it said nothing'}",
                f"all it said is in {log()}",
            )
        time.sleep(0.1)
