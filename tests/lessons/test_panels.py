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
    # JupyterLab would take text/html before image/png, and the file would be twice as large.
    assert set(bundle) == {"text/html", "text/plain"}


def test_figures_are_no_difference_for_the_comparison_of_chapters(shown):
    rules = (state.REPO / "tests" / "nbval-sanitize.cfg").read_text()
    patterns = nbval.plugin.get_sanitize_patterns(rules)
    for alt in ("one, 1.5 CPUs", HOSTILE):
        figures.show(drawn(), alt=alt)
    figures.show(figures.new()[0], alt="another")
    sanitized = set()
    for bundle in shown:
        for kind, text in bundle.items():
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
