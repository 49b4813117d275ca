"""Participants get gaps and keep their work; what they passed is remembered; an instructor sees a room."""

import ast
import http.server
import json
import os
import threading

import nbformat
import pytest

from labkit.app import room
from labkit.ground.errors import BadValue, NotFound
from labkit.lessons import checks, coursework, gaps

MARKED = '''\
def name_it():
    """Name it."""
    # >>> your turn: one call
    sc.sethostname("x")
    # <<<
    return 1'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A repo with two chapters, and a participant who has no copies yet."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(coursework, "CHAPTERS", tmp_path / "notebooks")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "root"))
    write("02-two.ipynb", MARKED, title="# 02 · The second")
    write("04-four.ipynb", "answer = 4", gap="answer = ...")
    return tmp_path


def write(name, source, title="# Title", gap=None):
    cell = nbformat.v4.new_code_cell(source, execution_count=3, metadata={"tags": ["solution"]})
    cell.outputs = [nbformat.v4.new_output("stream", text="Done.")]
    if gap is not None:
        cell.metadata["gap"] = gap
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(title), cell])
    nbformat.write(notebook, coursework.CHAPTERS / name)


def copy_of(name):
    return nbformat.read(coursework.folder() / name, 4)


# ---- gaps ----


def test_a_marked_gap_is_open_in_the_copy_and_filled_in_the_solution():
    assert gaps.opened(MARKED).split("\n")[2:] == ["    # your turn: one call", "    ...", "    return 1"]
    assert gaps.closed(MARKED).split("\n")[2:] == ['    sc.sethostname("x")', "    return 1"]


def test_what_stands_in_the_gap_can_be_said():
    source = "# >>> your turn: the flags\n# >>> of clone3\n#: flags = 0\nflags = 1\n# <<<"
    assert gaps.opened(source) == "# your turn: the flags\n# of clone3\nflags = 0"
    assert gaps.closed(source) == "flags = 1"


@pytest.mark.parametrize("source", ["# >>> a\nx = 1", "x = 1\n# <<<", "# >>> a\nx = 1\n# >>> b\n# <<<"])
def test_half_a_mark_is_refused(source):
    with pytest.raises(BadValue, match="other half"):
        gaps.opened(source)


def test_an_exercise_without_a_gap_is_refused(lab):
    write("05-five.ipynb", "x = 1")
    with pytest.raises(BadValue, match="05-five.ipynb.*no gap"):
        coursework.copy_all()


def test_the_pages_beside_the_chapters_are_always_the_newest(lab):
    for text in ("old", "new"):
        (coursework.CHAPTERS / "page.md").write_text(text)
        coursework.copy_all()
    assert (coursework.folder() / "page.md").read_text() == "new"


def test_a_copy_has_no_output_and_folds_the_solution_into_a_text_cell(lab):
    coursework.copy_all()
    two, four = copy_of("02-two.ipynb"), copy_of("04-four.ipynb")
    nbformat.validate(two)
    _, exercise, folded, last = two.cells
    assert last.source.endswith('labkit.progress("02")')
    assert "..." in exercise.source and "sethostname" not in exercise.source
    assert exercise.outputs == [] and exercise.execution_count is None
    assert folded.cell_type == "markdown" and folded.source.startswith("<details>") and "sethostname" in folded.source
    assert four.cells[1].source == "answer = ..." and "answer = 4" in four.cells[2].source


def test_chapter_00_lists_all_chapters_and_what_was_passed(lab):
    write("00-start.ipynb", "x = 1", gap="x = ...")
    coursework.copy_all()
    cells = copy_of("00-start.ipynb").cells
    listed = next(cell for cell in cells if "## The chapters" in cell.source)
    assert "- 02 · [The second](02-two.ipynb)" in listed.source
    assert [cell.source.split("\n")[-1] for cell in cells if "progress" in cell.source] == [
        "labkit.progress()",
        'labkit.progress("00")',
    ]
    nbformat.validate(copy_of("00-start.ipynb"))


def test_every_real_chapter_opens_and_its_gaps_are_still_python():
    for chapter in coursework.chapters():
        solved = json.loads(chapter.read_text())
        opened = coursework.with_progress(gaps.participants(solved), chapter.name[:2])
        nbformat.validate(nbformat.reads(json.dumps(opened), 4))
        for cell in opened["cells"]:
            if cell["cell_type"] == "code" and "exercise" in cell["metadata"].get("tags", []):
                places = holes(ast.parse("".join(cell["source"]), chapter.name))
                assert not places, f"{chapter.name}: who runs it as it is gets a traceback and no hint: {places}"


def holes(tree):
    """Return where `...` stands for a value that something is done with; as a line or an answer it does no harm."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.Constant) and child.value is ... and not isinstance(node, (ast.Expr, ast.Assign))
    ]


def test_a_hole_in_a_call_is_found_and_an_open_answer_is_none():
    assert holes(ast.parse("run(1, ...)\nx = (..., 2)")) == ["run(1, ...)", "(..., 2)"]
    assert not holes(ast.parse("answer = ...\n..."))


# ---- copies ----


def test_a_participants_work_is_never_written_over(lab):
    coursework.copy_all()
    copy = coursework.folder() / "04-four.ipynb"
    copy.write_text(copy.read_text().replace("answer = ...", "answer = 5"))
    mine = copy.read_bytes()
    assert coursework.copy_all() == []
    write("04-four.ipynb", "answer = 44", gap="answer = ...")
    (told,) = coursework.copy_all()
    assert "04" in told and "lab reset 04" in told
    assert copy.read_bytes() == mine


def test_a_copy_that_nobody_touched_follows_the_repo(lab):
    coursework.copy_all()
    copy = copy_of("04-four.ipynb")
    copy.metadata["kernelspec"] = {"name": "python3", "display_name": "as JupyterLab writes it on opening"}
    nbformat.write(copy, coursework.folder() / "04-four.ipynb")
    write("04-four.ipynb", "answer = 44", gap="answer = 'new edition'")
    assert coursework.copy_all() == []
    assert copy_of("04-four.ipynb").cells[1].source == "answer = 'new edition'"


def test_reset_gives_a_fresh_copy_and_keeps_each_old_one(lab):
    assert coursework.reset("04") is None
    copy = coursework.folder() / "04-four.ipynb"
    olds = []
    for text in ("first try", "second try"):
        copy.write_text(text)
        olds.append(coursework.reset(4))
        assert olds[-1].read_text() == text
        assert copy_of("04-four.ipynb").cells[1].source == "answer = ..."
    assert [old.name for old in olds] == ["04-four.before-1.ipynb", "04-four.before-2.ipynb"]
    assert olds[0].read_text() == "first try"


@pytest.mark.parametrize("number", ["99", "", "x", "../02", "0"])
def test_reset_of_no_chapter_changes_nothing(lab, number):
    coursework.copy_all()
    before = sorted(os.listdir(coursework.folder()))
    with pytest.raises(NotFound, match="02, 04"):
        coursework.reset(number)
    assert sorted(os.listdir(coursework.folder())) == before


# ---- progress ----


def test_progress_counts_what_was_passed_and_once_passed_stays_passed(lab):
    write(
        "12-mine.ipynb",
        "from labkit.lessons.checks import build as b\nb.hostname(1)\nb.root(2)\nb.promises.ALL",
        gap="...",
    )
    (chapter,) = [chapter for chapter in coursework.contents() if chapter.number == "12"]
    assert chapter.checks == ("build.hostname", "build.root")
    for passed in (False, True, False):
        coursework.note("build.hostname", passed)
    assert coursework.read_progress()["checks"]["build.hostname"]["tries"] == 2
    text = repr(coursework.progress("12"))
    assert "1 of 2" in text and "[x] The box is named" in text and "[ ] An overlay" in text
    assert "12   1 of  2  Title" in repr(coursework.progress())
    assert 'value="1" max="2"' in coursework.progress()._repr_html_()


def test_the_list_says_what_was_asked_and_names_no_argument_of_a_check():
    for chapter in coursework.contents():
        for line in repr(coursework.Progress(chapter.number)).splitlines()[1:]:
            assert "`" not in line and line.endswith("."), line


def test_progress_of_no_chapter_is_told(lab):
    with pytest.raises(NotFound, match="no chapter 99"):
        coursework.progress("99")


def test_many_kernels_note_at_once_and_nothing_is_lost(lab):
    threads = [threading.Thread(target=coursework.note, args=(f"a.b{n}", True)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(coursework.read_progress()["checks"]) == 12


def test_progress_that_can_not_be_saved_breaks_no_exercise(lab, monkeypatch):
    (coursework.folder() / "progress.json").write_text("{ half")
    coursework.note("build.hostname", True)


def test_a_check_outside_a_notebook_counts_for_nobody(lab):
    @checks.exercise
    def always():
        """It holds."""
        yield True, "it holds"

    assert always()
    assert coursework.read_progress()["checks"] == {}


# ---- a room ----


@pytest.fixture
def a_room(lab, tmp_path, monkeypatch):
    """A shared folder that two seats write into."""
    write("12-mine.ipynb", "from labkit.lessons.checks import build\nbuild.hostname(1)\nbuild.root(2)", gap="...")
    shared = tmp_path / "room"
    shared.mkdir()
    monkeypatch.setenv("LAB_ROOM", str(shared))
    for seat in ("one", "two"):
        monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / seat))
        coursework.note("build.hostname", True)
        for _ in range(room.STUCK):
            coursework.note("build.root", seat == "two")
    return shared


def test_a_room_shows_each_seat_by_number_and_who_is_stuck(a_room):
    head, totals, *rows = room.table(room.seats([str(a_room)]))
    assert head.split()[:2] == ["seat", "12"] and totals.split() == ["of", "2"]
    one, two = (next(row for row in rows if row.split()[1] == count) for count in "12")
    assert one.endswith(f"12 root, {room.STUCK} tries")
    assert two.split()[0].startswith("seat-") and two.endswith("0 min")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"last": "x", "checks": {}}',
        '{"last": NaN, "checks": {}}',
        '{"last": 1, "checks": {"build.root": 3}}',
    ],
)
def test_a_damaged_or_hostile_seat_is_told_and_spoils_no_other(a_room, text):
    (a_room / "seat-zzzz.json").write_text(text)
    lines = room.table(room.seats([str(a_room)]))
    assert len(lines) == 5
    assert lines[-1].startswith("seat-zzzz") and lines[-1].endswith("damaged")


def test_a_list_of_addresses_gives_the_seats_their_names(lab, tmp_path):
    listed = tmp_path / "seats"
    listed.write_text("seat-01  http://127.0.0.1:9/lab?token=x\n\nhttp://127.0.0.1:10/lab\n")
    assert [seat.name for seat in room.seats([str(listed)])] == ["seat-01", "127.0.0.1:10"]
    listed.write_text("nothing")
    with pytest.raises(BadValue, match="no address"):
        room.seats([str(listed)])


def test_a_seat_that_is_not_there_is_told(lab):
    (seat,) = room.seats(["http://127.0.0.1:9/lab?token=x"])
    assert seat.name == "127.0.0.1:9" and "refused" in seat.problem
    with pytest.raises(NotFound):
        room.seats(["/no/such/folder"])


class Hub(http.server.BaseHTTPRequestHandler):
    """A JupyterHub of which two users have a seat running."""

    FILE = {"content": json.dumps({"last": 1.0, "checks": {}})}
    PAGES = {"/hub/api/users": [{"name": "ada"}, {"name": "bob"}], "/user/ada/api/contents/progress.json": FILE}

    def do_GET(self):
        page = self.PAGES.get(self.path.partition("?")[0])
        known = self.headers["Authorization"] == "token right"
        self.send_response(200 if page and known else 404 if known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(page).encode())

    def log_message(self, *_):
        pass


def test_a_jupyterhub_is_asked_for_its_seats_and_each_seat_for_its_progress():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/hub?token="
        ada, bob = room.seats([f"{address}right"])
        assert (ada.name, ada.last, ada.problem) == ("ada", 1.0, "")
        assert (bob.name, bob.problem) == ("bob", "nothing tried yet")
        with pytest.raises(NotFound, match="lists no seats: the token is not right"):
            room.seats([f"{address}wrong"])
        server.shutdown()
