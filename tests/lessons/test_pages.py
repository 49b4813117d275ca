"""The cheat sheet says what this kernel has and does; the glossary what the chapters explain."""

import os
import re
from pathlib import Path

import pytest

from labkit.cgroups import limits
from labkit.cgroups.cgroup import Cgroup
from labkit.ground import proc, state
from labkit.ground import syscalls as sc
from labkit.ground.child import in_child
from labkit.ground.errors import NotFound
from labkit.isolation import namespaces
from labkit.lessons import coursework, pages


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_is_what_labkit_makes_of_it(name):
    again = "python -m labkit.lessons.pages"
    assert (coursework.CHAPTERS / name).read_text() == pages.PAGES[name](), f"{name} is of yesterday: {again}"


def test_each_kind_of_namespace_is_one_of_this_kernels():
    assert set(namespaces.KINDS) <= set(os.listdir("/proc/self/ns"))


def test_dockers_words_for_limits_are_those_that_labkit_takes():
    assert {word.removeprefix("--").replace("-", "_") for word in pages.OPTIONS.values()} <= limits._WORDS


def newer_than_this_kernel(since):
    here = re.match(r"(\d+)\.(\d+)", os.uname().release).groups()
    return tuple(map(int, since.split("."))) > tuple(map(int, here))


def test_each_file_of_a_cgroup_is_there_or_the_sheet_says_what_it_needs(needs_root):
    missing, seen = [], 0
    with Cgroup.create(state.new_id()) as group:
        for what, _, *columns in pages.cgroup_rows():
            for version, names in enumerate(columns, 1):
                for name in re.findall(r"\w+\.[\w.*]+", names):
                    controller = name.partition(".")[0].replace("blkio", "io")
                    folders = [
                        folder
                        for folder in group.folders
                        if folder.version == version and (controller == "cgroup" or controller in folder.controllers)
                    ]
                    if not folders:  # of the other version; here there is none
                        continue
                    seen += 1
                    need = pages.ONLY.get(name, "")
                    excused = not re.fullmatch(r"\d+\.\d+", need) or newer_than_this_kernel(need) if need else False
                    if not excused and not any(list(folder.path.glob(name)) for folder in folders):
                        missing.append((what, name))
    assert (missing, seen > 20) == ([], True)


def test_the_mount_calls_in_their_order_make_a_root(needs_root, tmp_path):
    for folder in ("lower/proc", "lower/dev", "lower/sys", "upper", "work", "root"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lower" / "mine").write_text("of the image")
    layers = "lowerdir=lower,upperdir=upper,workdir=work"

    def work():
        sc.unshare(sc.CLONE_NEWNS | sc.CLONE_NEWCGROUP)
        os.chdir(tmp_path)
        made = []
        for _, call, arguments in pages.calls():
            arguments = [layers if "…" in str(word) else word for word in arguments]
            if call == "mount" and str(target := arguments[1]).startswith("root/"):
                if not os.path.exists(target) and target.startswith(("root/proc/", "root/sys/")):
                    continue  # this kernel has no such file, so there is nothing to mask
                if not os.path.exists(target):
                    Path(target).touch() if target == "root/dev/null" else os.mkdir(target)
                made.append(target.removeprefix("root"))
            (getattr(sc, call, None) or getattr(os, call))(*arguments)
        os.chdir("/")
        seen = [mount.target for mount in proc.mounts()]
        assert not os.access("/proc/sys/kernel/hostname", os.W_OK)
        return made, seen, Path("/mine").read_text(), Path("/proc/interrupts").read_text()

    made, seen, mine, masked = in_child(work)
    assert (seen, mine, masked) == (["/", *dict.fromkeys(made)], "of the image", "")


def test_a_term_that_no_chapter_has_is_refused():
    with pytest.raises(NotFound, match="'phlogiston'"):
        pages.chapter_of("phlogiston")
