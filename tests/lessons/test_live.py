"""Pictures that can be pressed: they say what the kernel says, follow it, and leave nothing."""

import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from labkit import Limits
from labkit.cgroups import hierarchies
from labkit.cgroups.cgroup import Cgroup
from labkit.container.life import Container
from labkit.ground import ledger, proc, state
from labkit.ground.errors import BadValue, Unsupported
from labkit.lessons import panels
from labkit.lessons.panels import layers, trees
from labkit.lessons.watch import lsns, workloads
from labkit.storage import roots


@pytest.fixture(autouse=True)
def closed():
    """Whatever is on the screen goes, and no thread is left."""
    yield
    panels.close_all()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("live")] == []


def until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def buttons(live):
    """Return {key: the button that is really on the screen}."""
    shown, boxes = set(), [live.widget]
    while boxes:
        box = boxes.pop()
        shown.add(box.model_id)
        boxes += getattr(box, "children", ())
    # One that its thread has not made yet is None.
    return {key: button for key, button in live.buttons.items() if button and button.model_id in shown}


# ---- what is common to all ----


def test_pressing_a_button_tells_of_it_and_marks_it_by_more_than_a_colour(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_text("<b>in a</b>")
    live = layers.stack([tmp_path / "a"])
    button = buttons(live)[0, "f"]
    before = button.description
    button.click()
    assert button.description == f"▶ {before}" and button.style.font_weight == "bold"
    assert "&lt;b&gt;in a&lt;/b&gt;" in live.words.value and "<b>" not in live.words.value


def test_it_follows_what_changes_with_the_same_buttons_and_stops_by_its_button(tmp_path):
    (tmp_path / "f").write_text("")
    live = layers.stack([tmp_path])
    button = buttons(live)[0, "f"]
    live.button.value = True
    assert until(lambda: live.running)
    (tmp_path / "g").write_text("")
    assert until(lambda: (0, "g") in buttons(live))
    assert buttons(live)[0, "f"] is button, "another button has not the keyboard's focus"
    live.button.value = False
    assert not live.running and live.button.description == "Follow"


def test_it_stops_by_itself_and_when_its_cell_is_run_again(tmp_path):
    first = layers.stack([tmp_path])
    first.start()
    second = layers.stack([tmp_path])
    assert not first.running
    second.seconds = 1
    second.start()
    assert until(lambda: not second.running) and second.button.value is False


# ---- namespaces ----


@pytest.fixture
def owned(needs_root):
    """A process in a network namespace that a user namespace of its own owns."""
    process = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "sleep", "1000"])
    assert until(lambda: proc.namespace(process.pid, "net") != proc.namespace("self", "net"))
    until(lambda: proc.cmdline(process.pid)[0] == "sleep")
    yield process
    process.kill()
    process.wait()


def test_a_namespace_stands_below_the_one_that_owns_it_and_says_who_is_in_it(owned):
    live = trees.namespaces("net")
    net, user = proc.namespace(owned.pid, "net"), proc.namespace(owned.pid, "user")
    keys = [part.key for part in live.parts()]
    depth = {part.key: part.depth for part in live.parts()}
    assert keys.index(("net", net)) == keys.index(("user", user)) + 1
    assert depth["net", net] == depth["user", user] + 1
    buttons(live)["net", net].click()
    assert f"owned by user namespace {user}" in live.words.value
    assert f"{owned.pid}  sleep 1000" in live.words.value
    assert f"/proc/{owned.pid}/ns/net" in live.words.value


def test_a_user_namespace_is_nested_and_the_notebooks_own_is_marked(owned):
    live = trees.namespaces("user")
    here, its = proc.namespace("self", "user"), proc.namespace(owned.pid, "user")
    parts = {part.key: part for part in live.parts()}
    assert "this notebook" in parts["user", here].words and "this notebook" not in parts["user", its].words
    assert parts["user", its].depth > parts["user", here].depth


def test_another_kind_can_be_chosen_and_one_that_is_none_is_refused(needs_root):
    live = trees.namespaces("uts")
    live.choice.value = "pid"
    assert {part.key[0] for part in live.parts() if part.key != "more"} == {"pid"}
    assert all(kind == "pid" for kind, _ in buttons(live) if kind != "m")
    with pytest.raises(BadValue, match="banana"):
        trees.namespaces("banana")


def test_the_words_without_a_browser_are_those_of_the_survey(needs_root):
    text = trees.namespaces("uts").text()
    for one in lsns.survey()[:200]:
        if one.kind == "uts" and one.inode == proc.namespace("self", "uts"):
            assert f"uts {one.inode} · " in text


# ---- cgroups ----


def available(controller):
    try:
        return hierarchies.home(controller)
    except Unsupported as error:
        pytest.skip(str(error))


def test_a_cgroups_use_is_shown_against_its_limit(needs_root):
    available("memory")
    with Cgroup.create("pond", Limits.parse(memory="64m")) as group:
        live = trees.cgroups("memory")
        part = next(part for part in live.parts() if part.words.startswith("pond"))
        assert "of 64 MB" in part.words and 0 <= part.share < 0.2 and part.depth == 1
        group.set(Limits.parse(memory="32m"))
        live.press(part.key)
        assert "of 32 MB" in buttons(live)[part.key].description
        assert str(part.key) in live.words.value and str(32 << 20) in live.words.value
    live.refresh()
    assert part.key not in buttons(live)


def test_a_spinner_with_half_a_cpu_is_seen_to_use_half_a_cpu(needs_root):
    available("cpu")
    before = ledger.entries()
    with Container("busybox", workloads.spin(), cpus=0.5).start() as box:
        live = trees.cgroups("cpu")
        begin, before_it = time.monotonic(), box.cgroup.stats().usage_usec
        time.sleep(2)
        live.refresh()
        used = (box.cgroup.stats().usage_usec - before_it) / 1e6 / (time.monotonic() - begin)
        words = [button.description for key, button in buttons(live).items() if key.name == box.cgroup.name]
        cpus = float(words[0].split(" CPUs")[0].split()[-1])
        assert 0 < cpus < 0.6 and cpus == pytest.approx(used, rel=0.3, abs=0.02), words
        live.press(next(key for key in buttons(live) if key.name == box.cgroup.name))
        assert "50000" in live.words.value, "the limit that the kernel has"
    live.close()
    assert ledger.entries() == before


# ---- layers ----


def lay(root, tree):
    """Make files: a text, a folder's dict, "whiteout", or a dict with the key "opaque"."""
    for name, what in tree.items():
        if name == "opaque":
            os.setxattr(root, "trusted.overlay.opaque", b"y")
        elif isinstance(what, dict):
            (root / name).mkdir()
            lay(root / name, what)
        elif what == "whiteout":
            os.mknod(root / name, 0o020000, os.makedev(0, 0))
        else:
            (root / name).write_text(what)


STACKS = [
    [{"a": "0", "b": "0", "d": {"x": "0"}}, {"b": "1", "d": {"y": "1"}}, {"a": "whiteout", "c": "2"}],
    [{"d": {"x": "0"}}, {"d": "1"}, {"d": {"z": "2"}}],  # a file between two folders parts them
    [{"d": {"x": "0", "y": "0"}}, {"d": {"opaque": 1, "y": "1"}}, {"d": {"z": "2"}}],
    [{"d": {"x": "0"}}, {"d": "whiteout"}, {"d": {"z": "2"}}],
    [{"d": {"x": "0"}}, {}, {"d": "whiteout"}],
    [{"f": "0"}, {"f": {"x": "1"}}, {}],
]


@pytest.mark.parametrize("stack", STACKS)
def test_who_wins_is_who_wins_in_the_kernels_own_overlay(needs_root, stack):
    with tempfile.TemporaryDirectory(
        prefix=f"{state.label()}-", dir="/var/tmp"
    ) as root:  # /tmp may not do for an upperdir
        place = Path(root)
        folders = [place / f"layer{number}" for number in range(len(stack))]
        for folder, tree in zip(folders, stack, strict=True):
            folder.mkdir()
            lay(folder, tree)
        for name in ("work", "merged"):
            (place / name).mkdir()
        with roots.mounted(folders[:-1], folders[-1], place / "work", place / "merged"):
            for below in (".", "d", "f"):
                merged = place / "merged" / below
                real = {one: _read(merged / one) for one in os.listdir(merged)} if merged.is_dir() else {}
                live = layers.stack(folders[:-1], folders[-1], below)
                shown = {key[1]: _winner(live, key[1]) for key in buttons(live) if key[0] == "merged"}
                assert shown == real, (below, live.text())


def test_a_file_parts_the_folders_above_it_from_those_below(tmp_path):
    for number, tree in enumerate(({"d": {}}, {"d": "a file"}, {"d": {}}, {"d": {}})):
        (tmp_path / str(number)).mkdir()
        lay(tmp_path / str(number), tree)
    verdicts = layers.stack([tmp_path / number for number in "0123"]).verdicts()
    assert [verdicts[row, "d"] for row in (3, 2, 1, 0)] == ["joined", "joined", "hidden", "hidden"]


def _read(path):
    return "folder" if path.is_dir() else path.read_text()


def _winner(live, name):
    verdicts = live.verdicts().items()
    row = next(row for (row, one), word in verdicts if one == name and word in ("wins", "joined"))
    return _read(live.folders[row] / live.below / name)
