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
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from labkit.ground.dataclass import dataclass
from labkit.ground.errors import LabError
from labkit.lessons import figures
from labkit.lessons.panels import OnScreen

if TYPE_CHECKING:
    import ipywidgets


@dataclass(frozen=True)
class Part:
    """One thing in the picture: a button."""

    key: Any  # the same as long as it is the same thing
    words: str  # on the button; colours only repeat them
    depth: int = 0
    share: float | None = None  # of what it may use, from 0 to 1
    colour: str = figures.PALE


class Live(OnScreen):
    """Buttons that show what there is, and below them what the kernel says of the one that was pressed."""

    kind, idle, tooltip = "live", "Follow", "read it again every second"

    def __init__(self, name: str, choice: "ipywidgets.Dropdown | None" = None, seconds: float = 60) -> None:
        import ipywidgets

        super().__init__(name, seconds)
        self.choice: Any = choice
        self.pressed: Any = None  # the key of the part that is explained
        self.buttons: dict[Any, ipywidgets.Button | None] = {}  # by the parts' keys
        # In a narrow window it is scrolled sideways: words that are cut say nothing.
        self.body, self.words = ipywidgets.VBox(layout={"overflow": "auto"}), ipywidgets.HTML()
        top = [self.button] if choice is None else [choice, self.button]
        self.widget.children = (ipywidgets.HBox(top), self.body, self.words)
        if choice is not None:
            choice.observe(lambda _: self.press(None), "value")
        self.refresh()

    def _repr_mimebundle_(self, **words: object) -> dict[str, Any]:
        # In words, for who reads the saved notebook, where no widget lives.
        said = f'<pre class="live">{html.escape(self.text(), quote=False)}</pre>'
        return {**super()._repr_mimebundle_(**words), "text/html": said}

    def parts(self) -> list[Part]:
        """Return the Parts there are now."""
        raise NotImplementedError

    def told(self, key: Any) -> list[str]:
        """Return lines about a part."""
        raise NotImplementedError

    def arrange(self, parts: list[Part]) -> "Iterable[ipywidgets.Widget]":
        """Return the widgets of the picture, one or more a part; `button_of` makes or finds one."""
        raise NotImplementedError

    def text(self) -> str:
        """Return the picture in words, a line a part."""
        return "\n".join("  " * part.depth + part.words for part in self.parts())

    def press(self, key: Any) -> None:
        """Show what the kernel says of a part."""
        self.pressed = key
        self.refresh()

    def refresh(self) -> None:
        """Read everything anew, and show it."""
        with self._lock:
            try:
                parts = self.parts()
                lines = self.told(self.pressed) if self.pressed in {part.key for part in parts} else []
            except LabError as error:
                parts, lines = [], [str(error)]
            self.buttons = {part.key: self.buttons.get(part.key) for part in parts}
            children = tuple(self.arrange(parts))
            if children != self.body.children:
                self.body.children = children
            self.words.value = f"<pre>{html.escape(chr(10).join(lines))}</pre>" if lines else ""

    def button_of(self, part: Part, **layout: str) -> "ipywidgets.Button":
        """Return the button of a part: the same one as before, so that it keeps the keyboard's focus."""
        import ipywidgets

        button = self.buttons.get(part.key)
        if button is None:
            button = self.buttons[part.key] = ipywidgets.Button(layout=layout)
            button.on_click(lambda _: self.press(part.key))
        pressed = part.key == self.pressed
        button.description = f"▶ {part.words}" if pressed else part.words
        button.style.font_weight = "bold" if pressed else "normal"
        button.style.button_color, button.style.text_color = part.colour, "black"
        return button

    def begin(self) -> bool:
        """Read it at once."""
        return self.step()

    def step(self) -> bool:
        """Read it again."""
        self.refresh()
        return True
