"""What a benchmark found, as a table and as a panel of the figure."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """One table. `shown` is the column that the figure draws, and the words of its axis."""

    title: str  # short: the figure's panels have it too
    how: str  # the rounds, the unit
    columns: tuple  # headings, after the first column
    rows: list  # (label, value, …)
    ratios: list = field(default_factory=list)  # (a, b, a/b)
    notes: list = field(default_factory=list)  # sentences
    shown: tuple = (0, "[ms]")
    draw: object = None  # of (axes): another picture than bars
    ours: bool = False  # all in it is labkit's
    raw: dict = field(default_factory=dict)  # every single time

    def print(self):
        """Print it."""
        print(f"\n{self.title}: {self.how}")
        wide = max(len(str(row[0])) for row in self.rows) + 2
        cells = [[_cell(value) for value in row[1:]] for row in self.rows]
        widths = [max(len(text) for text in column) + 2 for column in zip(self.columns, *cells, strict=True)]
        for label, texts in zip(["", *(row[0] for row in self.rows)], [self.columns, *cells], strict=True):
            print(f"  {label:{wide}}" + "".join(f"{text:>{w}}" for text, w in zip(texts, widths, strict=True)))
        for a, b, found in self.ratios:
            print(f"  {a} / {b}: {found:{'.2f' if found >= 0.1 else '.1g'}}")
        for note in self.notes:
            print(f"  {note}")


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    return str(value)


def figure(reports, head):
    """Return all reports in one picture, a panel each."""
    from labkit.lessons import figures

    columns = next(number for number, most in ((1, 1), (2, 6), (3, len(reports))) if len(reports) <= most)
    lines = -(-len(reports) // columns)
    tall = [max(len(one.rows) for one in reports[line * columns : (line + 1) * columns]) for line in range(lines)]
    heights = [min(rows, 14) * 0.42 + 2.0 for rows in tall]
    whole, axes = figures.new(
        9 * columns, sum(heights) + 0.6, lines, columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    whole.suptitle(head, fontsize=13, x=0.01, ha="left")
    for place, panel in enumerate(axes.flat):
        if place >= len(reports):
            figures.blank(panel)
            continue
        reports[place].draw(panel) if reports[place].draw else _bars(panel, reports[place])
        panel.set_title(reports[place].title, fontsize=13)
    return whole


def colour(label):
    """Return labkit's colour, the C yardstick's, or that of all others."""
    from labkit.lessons import figures

    if label.startswith(("labkit", "lab ")):
        return figures.BLUE
    return figures.BLACK if label.startswith("C") and not label.islower() else figures.GREY


def _bars(axes, report):
    from labkit.lessons import figures

    column, axis = report.shown
    rows = [(row[0], row[column + 1]) for row in report.rows if isinstance(row[column + 1], int | float)][:14]
    bars = axes.barh([label for label, _ in rows], [value for _, value in rows], 0.66)
    for bar, (label, _) in zip(bars, rows, strict=True):
        bar.set_color(figures.BLUE if report.ours else colour(label))
    axes.bar_label(bars, [_cell(value) for _, value in rows], padding=4, fontsize=11)
    axes.set_ylim(max(len(rows), 4) - 0.5, -0.5)  # two bars are no thicker than four
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(axis)
