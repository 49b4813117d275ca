"""What a participant does in a browser: open the address, run, fill a gap wrong and right, restart, drag a slider."""

import io
import json
import re
import subprocess
import sys
import time

import numpy
import pytest
from seats import Notebook, served
from timing import until

from labkit.cgroups import hierarchies
from labkit.ground import ledger, proc, state
from labkit.lessons import coursework

pytestmark = [pytest.mark.usefixtures("needs_root"), pytest.mark.slow]

FOUR = "04-cpu.ipynb"
TWELVE = "12-your-own-container.ipynb"


def test_without_the_token_there_is_a_log_in_page_and_no_chapter(page, seat):
    page.goto(seat.page_of(TWELVE).partition("?")[0])
    assert page.locator("#password_input").is_visible()
    assert not page.locator(".jp-Notebook").count()


@pytest.mark.parametrize("path", ["/lab/tree/00-start-here.ipynb", "/"])
def test_the_address_opens_the_first_chapter_with_the_chapter_list_and_no_pop_up(page, seat, shots, path):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    host, _, rest = seat.address.partition("/lab/tree/00-start-here.ipynb")
    page.goto(f"{host}{path}{rest}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_timeout(3000)  # time for something to pop up
    assert not page.locator(".jp-Dialog, .jp-toast-button, .Toastify__toast").count()
    names = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert [name for name in names if name.endswith(".ipynb")] == [path.name for path in coursework.chapters()]
    letters = page.locator(".jp-MarkdownCell p").first.evaluate("text => getComputedStyle(text).fontSize")
    assert letters == "16px", "too small for the last row"
    assert not [url for url in asked if not url.startswith((host, "data:", "blob:"))], "it asks the internet"
    assert not [url for url in asked if "/lab/api/build" in url], "it would build itself anew"
    page.screenshot(path=shots / "start.png")


def test_an_exercise_is_open_filled_wrong_gives_a_hint_then_a_bigger_one_and_filled_right_passes(notebook, seat, shots):
    chapter = notebook(TWELVE)
    chapter.run(chapter.cell("import labkit"))
    gap = chapter.cell("def new_namespaces")
    check = chapter.cell("build.new_namespaces")
    assert "your turn" in gap.inner_text() and "CLONE_NEWPID" not in gap.inner_text()

    chapter.run(gap)
    first = chapter.run(check)
    assert "not yet  a mount table of its own" in first and "Hint:" in first
    chapter.write(gap, gap_with("sc.CLONE_NEWNS | sc.CLONE_NEWUTS"))
    chapter.run(gap)
    second = chapter.run(check)
    assert "right    a host name of its own" in second and "not yet  shared memory" in second
    assert hint(first) != hint(second)
    check.scroll_into_view_if_needed()
    chapter.page.screenshot(path=shots / "hint.png")

    chapter.page.locator("summary", has_text="Solution").first.click()
    solution = chapter.page.locator("details[open] code").first.inner_text()
    chapter.page.screenshot(path=shots / "solution.png")
    chapter.write(gap, solution)
    chapter.run(gap)
    assert chapter.run(check).strip().endswith("Done.")
    check.scroll_into_view_if_needed()
    chapter.page.screenshot(path=shots / "passed.png")
    record = json.loads((seat.root / "lib" / "notebooks" / "progress.json").read_text())
    assert record["checks"]["build.new_namespaces"]["passed"]
    host, _, token = seat.address.partition("/lab/tree/00-start-here.ipynb?")
    listed = chapter.page.request.get(f"{host}/api/contents/?{token}").json()["content"]
    assert "progress.json" not in [one["name"] for one in listed], "it is no chapter of theirs"
    assert chapter.page.request.get(f"{host}/api/contents/progress.json?{token}").ok, "`lab room` reads it there"


def gap_with(flags):
    return f"def new_namespaces():\n    pid, _ = sc.clone3({flags}, signal.SIGCHLD)\n    return pid"


def hint(text):
    return re.search(r"Hint: (.*)", text)[1]


def test_a_gap_left_open_fails_its_own_check_and_breaks_no_later_cell_than_its_own(notebook):
    chapter = notebook(TWELVE)
    chapter.run(chapter.cell("import labkit"))
    chapter.run(chapter.cell("def name_it"))
    chapter.run(chapter.cell("def new_namespaces"))
    assert "inside, the host name is mycontainer" in chapter.run(chapter.cell("build.hostname"))


def solve(seat, name):
    """Put the solved chapter in the seat's folder, under a name of its own."""
    solved = json.loads(next(path for path in coursework.chapters() if path.name == name).read_text())
    for cell in solved["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    copy = seat.root / "lib" / "notebooks" / f"solved-{name}"
    copy.write_text(json.dumps(solved))
    return copy.name


def test_a_chapter_runs_to_its_end_and_again_after_a_restart_in_the_middle(notebook, seat, shots):
    chapter = notebook(solve(seat, TWELVE))
    chapter.menu("Run", "Run All Cells")
    chapter.page.locator(".jp-InputPrompt", has_text="[5]:").wait_for()
    chapter.restart()
    assert chapter.run_all() == []
    assert "10 of 10 exercises passed" in chapter.output(chapter.cell('labkit.progress("12")'))
    picture = chapter.page.locator(".jp-OutputArea-output img").first
    picture.scroll_into_view_if_needed()
    chapter.page.screenshot(path=shots / "timelines.png")


def quotas(seat, monkeypatch):
    """Return what the kernel has as quotas in the seat's cgroups."""
    monkeypatch.setenv("LABKIT_ROOT", str(seat.root))
    tree = hierarchies.home("cpu")
    name = "cpu.max" if tree.version == 2 else "cpu.cfs_quota_us"
    return {file.read_text().split()[0] for file in (tree.own / state.label()).glob(f"*/{name}")} - {"max", "-1"}


def pixels(element):
    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(element.screenshot())).convert("L"), dtype=int)


def changed(before, after):
    """Return which part of the pixels differs."""
    rows, columns = (min(sizes) for sizes in zip(before.shape, after.shape, strict=True))
    return (abs(before[:rows, :columns] - after[:rows, :columns]) > 40).mean()


def panel_in(chapter, seat, monkeypatch):
    """Return chapter 04's panel cell, run without the cells before it."""
    chapter.run(chapter.cell("import labkit"))
    cell = chapter.cell("quota_panel()")
    chapter.write(cell, PANEL)
    chapter.run(cell)
    assert not quotas(seat, monkeypatch), "somebody before has left a cgroup"
    return cell


PANEL = "from labkit.lessons.panels import cpu as panels\npanels.quota_panel()"
SHOWS = """([image, name]) => image.naturalHeight > 100 && image.title.includes(name)"""


CUT = """labels => labels.filter(label => label.scrollWidth > label.clientWidth).map(label => label.innerText)"""


@pytest.mark.parametrize("width", [1280, 700])
def test_a_panel_shows_its_picture_before_it_is_started_and_its_labels_in_full(
    notebook, seat, shots, monkeypatch, width
):
    chapter = notebook(solve(seat, FOUR))
    page, cell = chapter.page, panel_in(chapter, seat, monkeypatch)
    page.set_viewport_size({"width": width, "height": 720})
    image, name = cell.locator(".jp-OutputArea-output img"), "quota ÷ period = 0.5 CPUs"
    page.wait_for_function(SHOWS, arg=[image.element_handle(), name])
    labels = cell.locator(".widget-label")
    assert [label for label in labels.all_inner_texts() if label] == ["quota [CPUs]", "period [ms]"]
    assert labels.evaluate_all(CUT) == []
    for slider in cell.locator(".widget-slider .noUi-target").all():
        assert slider.bounding_box()["width"] >= 100, "no hand can set that"
    page.screenshot(path=shots / f"panel-{width}.png")
    cell.locator("button", has_text="Start").wait_for()
    assert not quotas(seat, monkeypatch), "nothing was started"


def wait_for_limit(cell, readout):
    """Wait until the picture's limit line is where the slider stands; return that, in CPUs."""
    cpus = float(readout.inner_text())
    image = cell.locator(".jp-OutputArea-output img")
    cell.page.wait_for_function(SHOWS, arg=[image.element_handle(), f"quota ÷ period = {cpus:g} CPUs"])
    return cpus


def stop_panel(cell, seat, monkeypatch, press):
    """End the experiment; return when its cgroup is gone."""
    press()
    cell.locator("button", has_text="Start").wait_for()
    deadline = time.monotonic() + 10
    while quotas(seat, monkeypatch) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not quotas(seat, monkeypatch), "the panel left a cgroup"


def test_dragging_the_quota_slider_changes_the_kernels_quota_and_the_picture(notebook, seat, shots, monkeypatch):
    chapter = notebook(solve(seat, FOUR))
    page, cell = chapter.page, panel_in(chapter, seat, monkeypatch)
    cell.locator("button", has_text="Start").click()
    picture, readout = cell.locator(".jp-OutputArea-output img"), cell.locator(".widget-readout").first
    first = wait_for_limit(cell, readout)
    picture.scroll_into_view_if_needed()
    before, quota = pixels(picture), quotas(seat, monkeypatch)
    page.screenshot(path=shots / "slider-before.png")

    box = cell.locator(".noUi-handle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 100, y, steps=10)
    page.mouse.up()
    until(lambda: float(readout.inner_text()) > first, 30, "the slider")
    assert wait_for_limit(cell, readout) > first
    assert quotas(seat, monkeypatch) != quota, "the kernel's quota is what it was"
    until(lambda: changed(before, pixels(picture)) > 0.005, 30, "another picture")
    page.screenshot(path=shots / "slider-after.png")
    stop_panel(cell, seat, monkeypatch, cell.locator("button", has_text="Stop").click)


def test_by_keys_alone_cells_run_and_a_slider_moves_and_the_picture_follows(notebook, seat, shots, monkeypatch):
    chapter = notebook(solve(seat, FOUR))
    page, keys = chapter.page, chapter.page.keyboard
    cell = chapter.cell("quota_panel()")
    selected = page.locator(".jp-Cell.jp-mod-selected")
    for _ in range(6):
        keys.press("Shift+Enter")
    chapter.wait_idle()
    ran = r"\[\d+\]:"  # the kernel may be that of the test before
    assert re.match(ran, chapter.cell("import labkit").inner_text())
    assert re.match(ran, chapter.cell("cpu.hierarchies(trees)").inner_text())
    for _ in range(60):
        if "quota_panel()" in selected.inner_text():
            break
        keys.press("ArrowDown")
    keys.press("Enter")
    keys.press("Control+a")
    keys.insert_text(PANEL)
    keys.press("Control+Enter")
    cell.locator(".noUi-handle").first.wait_for()
    chapter.wait_idle()
    assert not quotas(seat, monkeypatch)

    chapter.tab_to("[role=slider]")
    chapter.tab_to("button.widget-toggle-button")
    keys.press("Space")
    readout = cell.locator(".widget-readout").first
    first = wait_for_limit(cell, readout)
    chapter.tab_to("[role=slider]", backwards=True)
    chapter.tab_to("[role=slider]", backwards=True)  # the period's stands between
    for _ in range(4):
        keys.press("ArrowRight")
    assert wait_for_limit(cell, readout) == pytest.approx(first + 4 * 0.05)
    assert quotas(seat, monkeypatch) == {f"{1e5 * (first + 4 * 0.05):.0f}"}
    page.screenshot(path=shots / "keys.png")
    chapter.tab_to("button.widget-toggle-button")
    stop_panel(cell, seat, monkeypatch, lambda: keys.press("Space"))


def test_a_picture_of_layers_is_pressed_by_keys_and_follows_the_folders(notebook, seat, shots, tmp_path):
    for layer, names in {"lower": "ab", "upper": "b"}.items():
        (tmp_path / layer).mkdir()
        for name in names:
            (tmp_path / layer / name).write_text(layer)
    chapter = notebook(solve(seat, "06-layers.ipynb"))
    page, cell = chapter.page, chapter.page.locator(".jp-CodeCell").first
    lower, upper = str(tmp_path / "lower"), str(tmp_path / "upper")
    chapter.write(cell, f"from labkit.lessons.panels.layers import stack\nstack([{lower!r}], {upper!r})")
    chapter.run(cell)
    page.keyboard.press("Escape")
    chapter.tab_to("button.widget-toggle-button")
    page.keyboard.press("Space")  # Follow
    hidden = cell.get_by_role("button", name="b · hidden")
    for _ in range(6):
        chapter.tab_to("button.jupyter-button")
        if page.evaluate("document.activeElement.innerText") == "b · hidden":
            break
    page.keyboard.press("Space")
    cell.locator("pre", has_text="a folder above has the name").wait_for()
    page.screenshot(path=shots / "layers.png")

    (tmp_path / "upper" / "b").unlink()
    cell.get_by_role("button", name="▶ b · wins").wait_for()
    assert page.evaluate("document.activeElement.innerText") == "▶ b · wins", "the focus went elsewhere"
    assert not hidden.count()
    cell.locator("button", has_text="Stop").click()
    cell.locator("button", has_text="Follow").wait_for()


CLIPPED = """buttons => buttons.filter(
    one => one.scrollWidth > one.clientWidth
        || getComputedStyle(one.parentElement).overflowX != "visible" && one.offsetWidth > one.parentElement.clientWidth
).map(one => one.innerText)"""


def test_in_a_narrow_window_no_word_of_a_picture_of_buttons_is_cut(notebook, seat, shots, tmp_path):
    for name in "abcde":
        (tmp_path / name).write_text(name)
    chapter = notebook(solve(seat, "06-layers.ipynb"))
    cell = chapter.page.locator(".jp-CodeCell").first
    pictures = f"stack([{str(tmp_path)!r}]).widget, trees.namespaces('net').widget"
    chapter.write(cell, f"from labkit.lessons.panels import trees\nfrom labkit.lessons.panels.layers import stack\n"
                        f"display({pictures})")  # fmt: skip
    chapter.run(cell)
    chapter.page.set_viewport_size({"width": 700, "height": 720})
    buttons = cell.locator("button.jupyter-button:visible")
    buttons.nth(11).wait_for()  # merged and the folder have five each, and there are namespaces
    assert buttons.evaluate_all(CLIPPED) == []
    buttons.nth(11).scroll_into_view_if_needed()
    chapter.page.screenshot(path=shots / "narrow.png")


def test_a_figure_has_its_alt_in_the_page(notebook, seat, shots):
    chapter = notebook(solve(seat, FOUR))
    chapter.run(chapter.cell("import labkit"))
    cell = chapter.cell("cpu.hierarchies(trees)")
    chapter.run(cell)
    name = re.search(r'alt="([^"]*)"', cell.locator(".cm-content").inner_text())[1]
    picture = cell.get_by_role("img", name=name)
    assert picture.evaluate("image => image.alt") == name
    assert picture.evaluate("image => image.naturalWidth") > 400
    picture.scroll_into_view_if_needed()
    chapter.page.screenshot(path=shots / "figure.png")


def test_chapter_04_runs_to_its_end(notebook, seat, shots):
    chapter = notebook(solve(seat, FOUR))
    assert chapter.run_all() == []
    chapter.page.screenshot(path=shots / "chapter-04.png")


def test_the_terminal_has_the_lab_command_and_runs_the_participants_container(notebook, seat, shots):
    chapter = notebook(TWELVE)
    chapter.menu("File", "New", "Terminal")
    chapter.page.wait_for_selector(".jp-Terminal .xterm-screen")
    chapter.page.wait_for_timeout(1500)
    chapter.page.keyboard.type("lab progress 12 > told; python3 mycontainer.py hostname > named\n")
    deadline = time.monotonic() + 30
    told, named = (seat.root / "lib" / "notebooks" / name for name in ("told", "named"))
    while not (named.exists() and named.read_text()) and time.monotonic() < deadline:
        chapter.page.wait_for_timeout(200)
    chapter.page.screenshot(path=shots / "terminal.png")
    assert "Chapter 12, Your own container" in told.read_text()
    assert named.read_text() == "mycontainer\n"


def test_nothing_is_left_when_the_lab_is_ended_in_the_middle_of_a_chapter(browser, tmp_path, monkeypatch):
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    with served(tmp_path) as seat:
        chapter = Notebook(page, seat.page_of(solve(seat, FOUR)))
        chapter.menu("Run", "Run All Cells")
        deadline = time.monotonic() + 60
        while not list((tmp_path / "run" / "ledger").glob("*.json")):
            assert time.monotonic() < deadline, "the chapter makes nothing"
            page.wait_for_timeout(50)
    page.close()
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    done = subprocess.run([sys.executable, "-P", "-m", "labkit", "clean"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ledger.entries() == []
    assert [str(path) for tree in hierarchies.hierarchies() for path in tree.own.glob(state.label())] == []
    assert [mount.target for mount in proc.mounts() if str(tmp_path) in mount.target] == []


def test_the_pages_beside_the_chapters_open_from_the_first_one_and_the_glossary_leads_back(notebook):
    page = notebook("00-start-here.ipynb").page
    page.locator(".jp-MarkdownCell a", has_text="cheat sheet").click()
    page.frame_locator("iframe").locator("code", has_text="CLONE_NEWNS").wait_for()
    page.locator(".lm-TabBar-tabLabel", has_text="00-start-here.ipynb").click()
    page.locator(".jp-MarkdownCell a", has_text="glossary").click()
    row = page.locator(".jp-MarkdownViewer tr", has_text="whiteout").first
    row.locator("a", has_text="06").click()
    page.wait_for_selector(".jp-Notebook .jp-MarkdownCell h1:has-text('06')")


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_the_cheat_sheet_prints_on_one_page(page, paper):
    page.goto((coursework.CHAPTERS / "cheat-sheet.html").as_uri())
    margins = dict.fromkeys(("top", "bottom", "left", "right"), "9mm")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format=paper, margin=margins))) == 1
