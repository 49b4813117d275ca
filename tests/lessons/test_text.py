"""What every chapter's text must have, whoever edits it next."""

import json
import re
from pathlib import Path

import pytest

from labkit.lessons import coursework
from labkit.lessons.figures import chapters

CHAPTERS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
# The commands of the post that the lab follows, where a reader of it will look for them.
THE_POSTS = ("/proc/cgroups", "systemd-cgls cpu", "systemd-cgls cpuset", "systemd-cgls memory", "docker top", "/ # ps")
# Docker's two image stores: whoever reads has one or the other.
STORES = {"06": ("overlay2", "overlayfs", "GraphDriver"), "08": ("overlay2", "overlayfs"), "09": ("containerd's",)}


def texts(chapter: Path) -> list[str]:
    cells = json.loads(chapter.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name[:2])
def test_a_chapter_ends_with_three_to_five_links_by_name(chapter):
    _, _, last = texts(chapter)[-1].partition("## Where to go from here\n")
    entries = [line for line in last.splitlines() if line.startswith("- ")]
    assert 3 <= len(entries) <= 5
    assert all(re.search(r"\[[^\]]+\]\(https://[^)\s]+\)", entry) for entry in entries)


@pytest.mark.parametrize("command", THE_POSTS)
def test_each_of_the_posts_commands_is_in_a_chapter_by_its_literal_words(command):
    assert any(command in text for chapter in CHAPTERS for text in texts(chapter))


@pytest.mark.parametrize("number", STORES)
def test_a_chapter_about_storage_names_both_of_dockers_image_stores(number):
    (chapter,) = (chapter for chapter in CHAPTERS if chapter.name.startswith(number))
    text = "\n".join(texts(chapter))
    assert [word for word in STORES[number] if word not in text] == []


def test_the_picture_of_the_way_names_every_chapter():
    (axes,) = chapters.way(coursework.contents()).axes
    drawn = {" ".join(text.get_text().split()) for text in axes.texts}
    assert {f"{chapter.number} {chapter.title}" for chapter in coursework.contents()} <= drawn
    assert len(coursework.contents()) == len(CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.name[:2])
def test_a_saved_panel_is_a_picture_or_words_and_no_widget_which_only_a_kernel_can_show(chapter):
    notebook = json.loads(chapter.read_text())
    bundles = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", ())]
    strip = "take application/vnd.jupyter.widget-view+json out of its outputs, and widgets out of its metadata"
    assert not any("widget-view" in kind for bundle in bundles for kind in bundle), strip
    assert "widgets" not in notebook["metadata"], strip
    for bundle in bundles:
        words = "".join(bundle.get("text/plain", ""))
        assert not words.startswith("<panel ") or "image/png" in bundle
        assert not words.startswith("<live ") or '<pre class="live">' in "".join(bundle["text/html"])
