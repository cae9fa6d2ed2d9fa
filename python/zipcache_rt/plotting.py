"""What the package's pictures share. matplotlib is imported in functions only; it comes with the `plot` extra."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli
from ._core import ArgumentError, FileError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
OURS, REFERENCE, FLOOR = "#1f6feb", "#8a8f98", "#c2552d"
GRID = "#e4e7eb"
# where a label may stand, in points from its point: the first place that is free wins
PLACES = [(8, 5), (8, -13), (-8, 5), (-8, -13), (8, 18), (8, -26), (-8, 18), (-8, -26), (8, 31), (-8, 31)]
ABOVE = [(3, 5), (-3, 5), *((side, up) for up in (17, 29, 41) for side in (3, -3))]


@contextmanager
def _any_script() -> Iterator[None]:
    """Characters that the font lacks become boxes, without a word on stderr."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def check_outputs(json: Path | None, plot: Path | None) -> None:
    """Finds before the work what would fail after it."""
    cli.check_folder(json, plot)
    if plot:
        check(plot)


def check(path: Path) -> None:
    """ArgumentError when no plot could be written there."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"the plot is {path.name!r}; accepted: a name that ends in {', '.join(FORMATS)}")
    check_library()


def check_library() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ArgumentError("a plot needs matplotlib: pip install 'zipcache-rt[plot]'")


def write(figure: Figure, path: Path) -> None:
    """Raises FileError."""
    # text stays text in SVG; without a date the same figures make the same bytes
    import matplotlib

    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zipcache"}), _any_script():
            figure.savefig(path, dpi=160, metadata=metadata)
    except OSError as error:
        raise FileError(f"cannot write the plot: {error}") from error


def new_figure(width: float, height: float) -> Figure:
    """Inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def quiet(axes: Axes) -> None:
    """A light grid behind the marks, no box."""
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


@_any_script()
def label_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    places: Sequence[tuple[int, int]] = PLACES,
) -> None:
    """Each label (x, y, text) beside its point, where no earlier label or point is."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles the limits: only then do labels have a place
    centres = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    for x, y, text in points:
        label = axes.annotate(plain(text), (x, y), xytext=places[0], textcoords="offset points", fontsize=9)
        for right, up in places:
            label.set_position((right, up))
            label.set_horizontalalignment("left" if right > 0 else "right")
            box = label.get_window_extent()
            if axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and not box.count_overlaps(taken):
                break
        taken.append(label.get_window_extent())


def plain(text: str) -> str:
    """Text that matplotlib shows as it is."""
    return cli.harmless(text).replace("$", r"\$")  # no mathematics
