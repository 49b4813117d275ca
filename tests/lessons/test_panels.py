"""What every picture promises: words for who can't see it, in the page's own HTML, and none that break it."""

import base64
import re
import time
from html.parser import HTMLParser

import ipywidgets
import nbval.plugin
import pytest

from labkit.ground import state
from labkit.lessons import figures, panels
from labkit.lessons.panels import cpu as cpu_panels
from labkit.lessons.panels import disk as disk_panels
from labkit.lessons.panels import memory as memory_panels
from labkit.lessons.panels import storage as storage_panels

HOSTILE = """CPU < "limit" & it's
full"""


@pytest.fixture
def shown(monkeypatch):
    """What `display` is given."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def drawn():
    figure, (above, below) = figures.new(rows=2)
    above.plot([0, 1], [3, 0.5], label="limit")
    above.plot([0, 1], [0, 0.25])
    above.set_ylabel("use [CPUs]")
    below.plot([0, 1], [1, 2], label="k = 2 s")
    below.set_ylabel("wait [s]")
    return figure


class Images(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_a_shown_figure_says_in_html_what_is_to_be_seen(shown):
    figures.show(drawn(), alt=HOSTILE)
    (bundle,) = shown
    ((tag, attributes),) = Images(bundle["text/html"]).found
    assert tag == "img" and attributes["alt"] == HOSTILE.replace("\n", " ")
    assert base64.b64decode(attributes["src"].partition(",")[2])[:4] == b"\x89PNG"
    # JupyterLab takes text/html before image/png. A code host takes pictures out of HTML, and shows that.
    assert bundle["image/png"] == attributes["src"].partition(",")[2]
    assert set(bundle) == {"text/html", "image/png", "text/plain"}


def test_figures_are_no_difference_for_the_comparison_of_chapters(shown):
    rules = (state.REPO / "tests" / "nbval-sanitize.cfg").read_text()
    patterns = nbval.plugin.get_sanitize_patterns(rules)
    for alt in ("one, 1.5 CPUs", HOSTILE):
        figures.show(drawn(), alt=alt)
    figures.show(figures.new()[0], alt="another")
    sanitized = set()
    for bundle in shown:
        for kind, text in bundle.items():
            if kind == "image/png":  # which nbval leaves out
                continue
            for pattern, instead in patterns:
                text = re.sub(pattern, instead, text)
            sanitized.add((kind, text))
    assert sanitized == {("text/html", "PICTURE"), ("text/plain", "PICTURE")}


def test_a_figures_values_are_said_with_their_units():
    assert figures.values(drawn()) == "limit 0.5 CPUs, k = 2 s"
    figure, axes = figures.new()
    for row, share in enumerate((14.3, 85.7)):
        axes.barh(row, share)
        axes.text(share, row, f"{share} %")
    axes.set_yticks([0, 1], ["weight 100", "weight 600"])
    assert figures.values(figure) == "weight 100 14.3 %, weight 600 85.7 %"


def test_a_panels_picture_is_said_too_and_its_words_follow_what_was_drawn():
    class Still:
        height = 1

        def start(self, values):
            self.turn(values)

        def turn(self, values):
            self.height = values["height"]

        def still(self, values):
            return figures.new()[0]

        def draw(self):
            figure, axes = figures.new()
            axes.plot([0, 1], [self.height] * 2, label="limit")
            axes.set_ylabel("m")
            return figure

        def stop(self):
            pass

    knob = ipywidgets.IntSlider(3)
    panel = panels.Panel("still", Still(), {"height": knob}, seconds=20, alt="A line")
    assert panel.picture.tooltip == "A line"
    panel.start()
    knob.value = 7
    deadline = time.monotonic() + 20
    while panel.picture.tooltip != "A line. limit 7 m" and time.monotonic() < deadline:
        time.sleep(0.05)
    panel.close()
    assert panel.picture.tooltip == "A line. limit 7 m"
    # With no description the page shows an error in place of a picture that has a tooltip.
    assert panel.picture.get_state()["description"] == ""


STILL = {  # what is said of the picture before anything was started: the limits
    cpu_panels.quota_panel: ("quota ÷ period = 0.5 CPUs", "cpus", 0.2, "quota ÷ period = 0.2 CPUs"),
    cpu_panels.weights_panel: (
        "a: weight 100, b: weight 200, c: weight 400",
        "a",
        700,
        "a: weight 700, b: weight 200, c: weight 400",
    ),
    memory_panels.memory_panel: ("limit = 48 MiB", "limit", 32, "limit = 32 MiB"),
    memory_panels.processes_panel: ("pids.max = 20 processes", "limit", 30, "pids.max = 30 processes"),
    memory_panels.freeze_panel: ("", "frozen", True, ""),
    disk_panels.disk_panel: ("limit = 8 MiB/s", "limit", 4, "limit = 4 MiB/s"),
    storage_panels.copy_up_panel: ("", "size", 1 << 12, ""),
}


@pytest.mark.parametrize("make", STILL)
def test_before_it_is_started_a_panel_shows_its_axes_and_the_limits_that_its_knobs_say(make, needs_root):
    before, name, value, after = STILL[make]
    panel = make()
    first = bytes(panel.picture.value)
    assert first[:4] == b"\x89PNG" and panel.picture.tooltip == ". ".join(filter(None, (panel.alt, before)))
    panel.knobs[name].value = value
    assert not panel.running and panel.picture.tooltip == ". ".join(filter(None, (panel.alt, after)))
    bundle = panel._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]) == bytes(panel.picture.value), "for who reads it saved"
    panel.close()


@pytest.mark.parametrize("make", STILL)
def test_a_knobs_words_are_never_cut(make, needs_root):
    panel = make()
    for knob in panel.knobs.values():
        assert "description_width" not in knob.style.keys or knob.style.description_width == "initial"
        assert knob.layout.flex == "1 1 330px"
    panel.close()
