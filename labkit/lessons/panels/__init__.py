"""Panels: turn a knob while a container runs, and see at once what the kernel makes of it.

A panel is three things that know nothing of each other: knobs (ipywidgets), an
experiment that is running, and a picture that is drawn again a few times a second
from what was sampled so far. What a panel needs is an Experiment:

    start(values)     make it: containers, a sampler; called with the knobs' values
    turn(values)      a knob was turned while it runs
    draw()            return a Figure of what has been seen so far
    stop()            take everything away; harmless when it is called twice

The picture is an image widget whose bytes are replaced, and with them the words that
a screen reader says. Nothing is printed, so a panel can be displayed where nothing
may be (and saved, for who reads the notebook without a kernel). It stops by its button, after `seconds`,
when its cell is run again, and when the notebook's kernel ends: then the spawner
sees its socket close and kills the container, and the ledger has the rest.
"""

import atexit
import threading
import time

from labkit.ground.errors import LabError
from labkit.lessons.figures import png, values

FRAMES = 3  # pictures a second: one takes about 0.1 s of CPU, which the workload does not get
_shown: dict = {}  # name: what is on the screen


def put(panel):
    """Note what is on the screen by its name; close what was there under that name."""
    if panel.name in _shown:
        _shown[panel.name].close()
    _shown[panel.name] = panel


def take(panel):
    """Forget what is on the screen no longer."""
    if _shown.get(panel.name) is panel:
        del _shown[panel.name]


def toggle(button, pressed, running, idle):
    """Have a button say Stop while something runs, else `idle`; `pressed` does not hear of it."""
    button.unobserve(pressed, "value")
    button.value = running
    button.description, button.icon = ("Stop", "stop") if running else (idle, "play")
    button.observe(pressed, "value")


def picture(words):
    """Return an empty image widget; its tooltip is what a screen reader says."""
    import ipywidgets
    import traitlets

    class Picture(ipywidgets.Image):
        # It has no alt. But a tooltip becomes the title of its <img>, and so its name,
        # if it has a description too, which Image lacks: without, the browser shows an error.
        description = traitlets.Unicode("").tag(sync=True)

    return Picture(format="png", tooltip=words, layout={"max_width": "100%", "min_height": "20px"})


class Panel:
    """Knobs, a start button, and a live picture. `name` is one of a kind: a second one replaces the first."""

    def __init__(self, name, experiment, knobs, seconds=20, alt=""):
        import ipywidgets

        self.name, self.experiment, self.knobs = name, experiment, knobs
        self.seconds, self.alt = seconds, alt
        put(self)
        self._thread, self._end = None, threading.Event()
        self._lock = threading.RLock()
        self.button = ipywidgets.ToggleButton(description="Start", icon="play", tooltip="start and stop")
        self.message = ipywidgets.HTML()
        self.picture = picture(alt)
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HBox([*knobs.values(), self.button], layout={"flex_flow": "row wrap"}),
                self.message,
                self.picture,
            ]
        )
        self.button.observe(self._pressed, "value")
        for knob in knobs.values():
            knob.observe(self._turned, "value")

    def __repr__(self):
        return f"<panel {self.name}: {', '.join(self.knobs)}>"

    def _repr_mimebundle_(self, **_):
        bundle = self.widget._repr_mimebundle_()
        # Its text would be a page of widget reprs; ours stays the same.
        return {**(bundle[0] if isinstance(bundle, tuple) else bundle), "text/plain": repr(self)}

    @property
    def values(self):
        """The knobs' values by name."""
        return {name: knob.value for name, knob in self.knobs.items()}

    @property
    def running(self):
        """Whether the experiment runs."""
        return self._thread is not None and self._thread.is_alive()

    def _pressed(self, change):
        if change["new"]:
            self.start()
        else:
            self.stop()

    def _turned(self, _):
        if self.running:
            with self._lock:
                self._try(self.experiment.turn, self.values)

    def _try(self, action, *arguments):
        """Do it; say on the panel what stopped it, and tell whether it went well."""
        try:
            action(*arguments)
        except LabError as error:
            self.message.value = f"<pre>{type(error).__name__}: {error}</pre>".replace("→", "&rarr;")
            return False
        return True

    def start(self):
        """Start the experiment with the knobs as they are. What can't be started is said on the panel."""
        self.stop()
        self.message.value = ""
        if not self._try(self.experiment.start, self.values):
            self.stop()
            return
        self._end.clear()
        self._show(True)
        self._thread = threading.Thread(target=self._run, name=f"panel {self.name}", daemon=True)
        self._thread.start()

    def _run(self):
        deadline, pause = time.monotonic() + self.seconds, 1 / FRAMES
        while not self._end.wait(pause) and time.monotonic() < deadline:
            begin = time.monotonic()
            with self._lock:
                if not self._try(self._frame):
                    break
            # Where drawing is slow, rest as long as it took: half of a CPU is enough.
            pause = max(1 / FRAMES, time.monotonic() - begin)
        with self._lock:
            self._try(self._frame)
            self._try(self.experiment.stop)
        self._show(False)

    def _frame(self):
        figure = self.experiment.draw()
        if figure is not None:
            self.picture.value = png(figure, dpi=80)
            self.picture.tooltip = ". ".join(filter(None, (self.alt, values(figure))))

    def _show(self, running):
        toggle(self.button, self._pressed, running, "Start")

    def stop(self):
        """Stop the experiment and take away what it made; return when it is gone."""
        self._end.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._try(self.experiment.stop)
        self._thread = None

    def close(self):
        """Stop it and take it off the screen."""
        self.stop()
        self.widget.close()
        take(self)


def close_all():
    """Stop every panel."""
    for panel in list(_shown.values()):
        panel.close()


atexit.register(close_all)
