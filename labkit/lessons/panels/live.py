"""A picture that is made of buttons: press a part of it, and see what the kernel says of that part.

Unlike a panel it starts nothing and changes nothing, it only reads. It reads when
something is pressed, and every second while *Follow* is on; that ends by itself, by
its button, when its cell is run again, and when the kernel ends. All of it can be
reached by Tab and pressed with Space, and `text()` is the same without a browser.

A picture of that kind says what there is, as Parts in the order of the screen:

    parts()        what there is now
    told(key)      the lines to show for a part that was pressed
"""

import html
import threading
from dataclasses import dataclass

from labkit.ground.errors import LabError
from labkit.lessons import figures
from labkit.lessons.panels import put, take, toggle


@dataclass(frozen=True)
class Part:
    """One thing in the picture: a button."""

    key: object  # the same as long as it is the same thing
    words: str  # on the button; colours only repeat them
    depth: int = 0
    share: float | None = None  # of what it may use, from 0 to 1
    colour: str = figures.PALE


class Live:
    """Buttons that show what there is, and below them what the kernel says of the one that was pressed."""

    def __init__(self, name, choice=None, seconds=60):
        import ipywidgets

        self.name, self.choice, self.seconds = name, choice, seconds
        put(self)
        self.pressed = None  # the key of the part that is explained
        self._buttons = {}
        self._thread, self._end, self._lock = None, threading.Event(), threading.RLock()
        self.follow = ipywidgets.ToggleButton(description="Follow", icon="play", tooltip="read it again every second")
        self.body = ipywidgets.VBox()
        self.words = ipywidgets.HTML()
        top = [self.follow] if choice is None else [choice, self.follow]
        self.widget = ipywidgets.VBox([ipywidgets.HBox(top), self.body, self.words])
        self.follow.observe(self._follow_or_stop, "value")
        if choice is not None:
            choice.observe(self._chosen, "value")
        self.refresh()

    def __repr__(self):
        return f"<live {self.name}>"

    def _repr_mimebundle_(self, **_):
        bundle = self.widget._repr_mimebundle_()
        return {**(bundle[0] if isinstance(bundle, tuple) else bundle), "text/plain": repr(self)}

    def parts(self):
        """Return the Parts there are now."""
        raise NotImplementedError

    def told(self, key):
        """Return lines about a part."""
        raise NotImplementedError

    def arrange(self, parts):
        """Return the widgets of the picture, one or more a part; `button` makes or finds one."""
        raise NotImplementedError

    def text(self):
        """Return the picture in words, a line a part."""
        return "\n".join("  " * part.depth + part.words for part in self.parts())

    def press(self, key):
        """Show what the kernel says of a part."""
        self.pressed = key
        self.refresh()

    def refresh(self):
        """Read everything anew, and show it."""
        with self._lock:
            try:
                parts = self.parts()
                lines = self.told(self.pressed) if self.pressed in {part.key for part in parts} else []
            except LabError as error:
                parts, lines = [], [str(error)]
            self._buttons = {part.key: self._buttons.get(part.key) for part in parts}
            children = tuple(self.arrange(parts))
            if children != self.body.children:
                self.body.children = children
            self.words.value = f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else ""

    def button(self, part, **layout):
        """Return the button of a part: the same one as before, so that it keeps the keyboard's focus."""
        import ipywidgets

        button = self._buttons.get(part.key)
        if button is None:
            button = self._buttons[part.key] = ipywidgets.Button(layout=layout)
            button.on_click(lambda _: self.press(part.key))
        pressed = part.key == self.pressed
        button.description = f"▶ {part.words}" if pressed else part.words
        button.style.font_weight = "bold" if pressed else "normal"
        button.style.button_color, button.style.text_color = part.colour, "black"
        return button

    @property
    def running(self):
        """Whether it follows."""
        return self._thread is not None and self._thread.is_alive()

    def _chosen(self, _):
        self.pressed = None
        self.refresh()

    def _follow_or_stop(self, change):
        if change["new"]:
            self.start()
        else:
            self.stop()

    def start(self):
        """Follow for `seconds`."""
        self.stop()
        self._end.clear()
        self._show(True)
        self._thread = threading.Thread(target=self._run, name=f"live {self.name}", daemon=True)
        self._thread.start()

    def _run(self):
        for _ in range(int(self.seconds)):
            self.refresh()
            if self._end.wait(1):
                break
        self._show(False)

    def _show(self, running):
        toggle(self.follow, self._follow_or_stop, running, "Follow")

    def stop(self):
        """Follow no longer; harmless when it is called twice."""
        self._end.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def close(self):
        """Take it off the screen."""
        self.stop()
        self.widget.close()
        take(self)
