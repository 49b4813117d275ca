"""Panels: turn a knob while a container runs, and see at once what the kernel makes of it.

A panel is three things that know nothing of each other: knobs (ipywidgets), an
experiment that is running (see `experiments`), and a picture. Before it is started the
picture shows its axes and limits; then it is drawn again a few times a second from
what was sampled so far. What a panel needs is an experiment that can, with the knobs'
values by name:

    start(values)     make it: containers, a sampler
    turn(values)      have other values hold while it runs
    still(values)     return the Figure of before: axes, limits, nothing in them
    draw()            return a Figure of what has been seen so far, or None if that is too little
    stop()            take everything away; harmless when it is called twice

The files:

    experiments          what is started, turned, drawn and taken away
    cpu, memory, disk,
    storage              the panels of the chapters, each with a plain function beside it
    live                 pictures that are made of buttons
    trees, layers        namespaces, cgroups and layers, to be pressed

The picture is an image widget whose bytes are replaced, and with them the words that
a screen reader says. Nothing is printed, so a panel can be displayed where nothing
may be (and saved, for who reads the notebook without a kernel). It stops by its button,
after `seconds`, when its cell is run again, and when the notebook's kernel ends: then
the spawner sees its socket close and kills the container, and the ledger has the rest.
"""

import atexit
import base64
import html
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from labkit.ground.errors import LabError
from labkit.lessons.figures import png, values

if TYPE_CHECKING:
    import ipywidgets

Values = dict[str, Any]  # what the knobs say, by name
_shown: dict[str, "OnScreen"] = {}  # what is on the screen, by name


class OnScreen:
    """Something on the screen that goes on by itself until it is stopped: its button, its thread, its end.

    `name` is one of a kind: a second one replaces the first. Who inherits says what
    is done at the beginning, `every` so many seconds, and at the end.
    """

    kind, idle, tooltip = "", "Start", "start and stop"
    every = 1.0  # seconds from one step to the next

    def __init__(self, name: str, seconds: float) -> None:
        import ipywidgets

        self.name, self.seconds = name, seconds
        if before := _shown.get(name):
            before.close()
        _shown[name] = self
        self._thread: threading.Thread | None = None
        self._end, self._lock = threading.Event(), threading.RLock()
        self.button = ipywidgets.ToggleButton(description=self.idle, icon="play", tooltip=self.tooltip)
        self.button.observe(self._pressed, "value")
        # In a narrow window the bar of the selected cell stands close by.
        self.widget = ipywidgets.VBox(layout={"padding": "0 0 0 6px"})

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        bundle = self.widget._repr_mimebundle_()
        # Its text would be a page of widget reprs; ours stays the same.
        return {**(bundle[0] if isinstance(bundle, tuple) else bundle), "text/plain": repr(self)}

    def begin(self) -> bool:
        """Get ready; tell whether it can go on."""
        return True

    def step(self) -> bool:
        """Show what there is now; tell whether it can go on."""
        raise NotImplementedError

    def finish(self) -> None:
        """Take away what was made; harmless when it is called twice."""

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._thread is not None and self._thread.is_alive()

    def _pressed(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.start()
        else:
            self.stop()

    def start(self) -> None:
        """Begin, and go on for `seconds`."""
        self.stop()
        if not self.begin():
            self.stop()
            self._show(False)
            return
        self._end.clear()
        self._show(True)
        self._thread = threading.Thread(target=self._run, name=f"{self.kind} {self.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        deadline, pause, well = time.monotonic() + self.seconds, self.every, True
        while well and not self._end.wait(pause) and time.monotonic() < deadline:
            begin = time.monotonic()
            with self._lock:
                well = self.step()
            # Where drawing is slow, rest as long as it took: half of a CPU is enough.
            pause = max(self.every, time.monotonic() - begin)
        with self._lock:
            self.step()
            self.finish()
        self._show(False)

    def _show(self, running: bool) -> None:
        """Have the button say Stop while it goes on, and not hear of that."""
        self.button.unobserve(self._pressed, "value")
        self.button.value = running
        self.button.description, self.button.icon = ("Stop", "stop") if running else (self.idle, "play")
        self.button.observe(self._pressed, "value")

    def stop(self) -> None:
        """Stop it; return when what it made is gone. Harmless when it is called twice."""
        self._end.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self.finish()
        self._thread = None

    def close(self) -> None:
        """Stop it and take it off the screen."""
        self.stop()
        self.widget.close()
        if _shown.get(self.name) is self:
            del _shown[self.name]


class Panel(OnScreen):
    """Knobs, a start button, and a live picture."""

    kind = "panel"
    every = 1 / 3  # a picture takes about 0.1 s of CPU, which the workload does not get

    def __init__(self, name: str, experiment: Any, knobs: dict[str, Any], seconds: float = 20, alt: str = "") -> None:
        import ipywidgets

        super().__init__(name, seconds)
        self.experiment, self.knobs, self.alt = experiment, knobs, alt
        self.message = ipywidgets.HTML()
        self.picture = picture(alt)
        layout = {"flex_flow": "row wrap", "align_items": "center"}
        top = ipywidgets.HBox([*knobs.values(), self.button], layout=layout)
        self.widget.children = (top, self.message, self.picture)
        for knob in knobs.values():
            knob.observe(self._turned, "value")
        self._fresh = True  # nothing was measured yet
        self._show_still()

    def __repr__(self) -> str:
        return f"<panel {self.name}: {', '.join(self.knobs)}>"

    def _repr_mimebundle_(self, **words: object) -> dict[str, Any]:
        # The picture is for who reads the saved notebook, where no widget lives.
        still = base64.b64encode(bytes(self.picture.value)).decode()
        return {**super()._repr_mimebundle_(**words), "image/png": still}

    @property
    def values(self) -> Values:
        """The knobs' values by name."""
        return {name: knob.value for name, knob in self.knobs.items()}

    def _turned(self, _: object) -> None:
        if self.running:
            with self._lock:
                self._try(self.experiment.turn, self.values)
        elif self._fresh:
            self._show_still()

    def _show_still(self) -> None:
        self._try(lambda: self._put(self.experiment.still(self.values)))

    def _try(self, action: Callable[..., object], *arguments: object) -> bool:
        """Do it; say on the panel what stopped it, and tell whether it went well."""
        try:
            action(*arguments)
        except LabError as error:
            self.message.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
            return False
        return True

    def begin(self) -> bool:
        """Start the experiment with the knobs as they are. What can't be started is said on the panel."""
        self.message.value, self._fresh = "", False
        return self._try(self.experiment.start, self.values)

    def step(self) -> bool:
        """Draw what was seen so far."""
        return self._try(lambda: self._put(self.experiment.draw()))

    def finish(self) -> None:
        """Stop the experiment and take away what it made."""
        self._try(self.experiment.stop)

    def _put(self, figure: Figure | None) -> None:
        if figure is not None:
            # The same pixels on a smaller sheet: letters that a narrow window leaves large enough to read.
            figure.set_size_inches(0.8 * figure.get_size_inches())
            self.picture.value = png(figure, dpi=100)
            self.picture.tooltip = ". ".join(filter(None, (self.alt, values(figure))))


def picture(words: str) -> "ipywidgets.Image":
    """Return an empty image widget; its tooltip is what a screen reader says."""
    import ipywidgets
    import traitlets

    class Picture(ipywidgets.Image):
        # It has no alt. But a tooltip becomes the title of its <img>, and so its name,
        # if it has a description too, which Image lacks: without, the browser shows an error.
        description = traitlets.Unicode("").tag(sync=True)

    return Picture(format="png", tooltip=words, layout={"max_width": "100%", "min_height": "20px"})


def knob(kind: str, words: str, **options: object) -> Any:
    """Return a widget of ipywidgets by its name there, with all of its words beside it and room for a hand."""
    import ipywidgets

    look = {"style": {"description_width": "initial"}, "layout": {"flex": "1 1 330px", "max_width": "470px"}}
    return getattr(ipywidgets, kind)(description=words, **look, **options)


def slider(words: str, value: int, least: int, most: int, step: int = 1) -> Any:
    """Return a slider of whole numbers, which tells its value when the hand lets go."""
    return knob("IntSlider", words, value=value, min=least, max=most, step=step, continuous_update=False)


def close_all() -> None:
    """Stop every panel."""
    for one in list(_shown.values()):
        one.close()


atexit.register(close_all)
