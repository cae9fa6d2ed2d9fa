"""Tables 1, 2, 3 and A: compression and fidelity of one policy a row, as figures and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import plotting
from ..fidelity_report import CONTROL
from .findings import Findings
from .plan import Artefact, Row
from .shown import Cells, Column, Shown, failures, status, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    Column("name", "cache"),
    Column("policy", "policy"),
    Column("bits", "bits", ".2f"),
    Column("ratio", "ratio", ".2f"),
    Column("all_ratio", "ratio with window", ".2f"),
    Column("kl_mean_nats", "KL, nats", ".4f"),
    Column("kl_ci95_nats", "±", ".4f"),
    Column("same_top", "same top token", ".1%"),
    Column("perplexity_ratio", "perplexity / f16", ".3f"),
)
LINES_COLUMNS = (
    Column("lines_accuracy", "lines: accuracy", ".1%"),
    Column("lines_low", "95 % from", ".1%"),
    Column("lines_high", "to", ".1%"),
    Column("lines_same_reply", "lines: reply as f16", ".1%"),
)
STATUS = Column("status", "")
INTERVAL = "#22272e"  # on bars
COSTS = "Bits and ratio: all-in, of compressed tokens; with window: of everything that the cache holds."


@dataclass(frozen=True)
class Panel:
    """One measure of all rows, in a picture."""

    key: str
    title: str
    form: str
    scale: float = 1
    log: bool = False
    interval: tuple[str, str] | None = None  # keys of its ends, of 95 % confidence


PANELS = (
    Panel(
        "kl_mean_nats",
        "KL(f16 || cache), nats\nless is better",
        ".3g",
        log=True,
        interval=("kl_low_nats", "kl_high_nats"),
    ),
    Panel("same_top", "same top token as f16, %\nmore is better", ".1f", scale=100),
    Panel("ratio", "ratio of compressed tokens\nmore is better", ".2f"),
)
LINES_PANEL = Panel(
    "lines_accuracy",
    "line retrieval, % right\nmore is better",
    ".0f",
    scale=100,
    interval=("lines_low", "lines_high"),
)
NEAR = 10  # times the floor: how far a figure may lie above it for the floor to be in the picture


def show(artefact: Artefact, found: Findings) -> Shown:
    with_lines = "lines" in artefact.measures
    rows = [_cells(row, found) for row in artefact.rows]
    columns = (*COLUMNS, *(LINES_COLUMNS if with_lines else ()), STATUS)
    panels = (*PANELS, *([LINES_PANEL] if with_lines else []))
    figure = None
    if any(cells["kl_mean_nats"] is not None for cells in rows):
        figure = _draw(artefact, found, rows, panels)
    notes = [*failures(artefact.rows, found), COSTS, *_floor_note(found)]
    return Shown(artefact, columns, rows, figure, verdicts(artefact, found.fidelity), notes)


def _cells(row: Row, found: Findings) -> Cells:
    cells: Cells = {column.key: None for column in (*COLUMNS, *LINES_COLUMNS)}
    result = found.fidelity.get(row.policy)
    lines = found.lines.get(0, {}).get(row.policy)
    if result:
        cells |= {
            "bits": result.bits,
            "ratio": 16 / result.bits,
            "all_ratio": result.kv.ratio,
            "kl_mean_nats": result.figures.kl_mean,
            "kl_ci95_nats": result.figures.kl_ci95,
            "kl_low_nats": result.figures.kl_mean - result.figures.kl_ci95,
            "kl_high_nats": result.figures.kl_mean + result.figures.kl_ci95,
            "same_top": result.figures.same_top,
            "perplexity_ratio": result.figures.perplexity_ratio,
        }
    if lines and lines.score:
        cells |= {"lines_accuracy": lines.score.value, "lines_low": lines.score.low, "lines_high": lines.score.high}
        cells |= {"lines_same_reply": lines.same_reply.value if lines.same_reply else None}
    return cells | {"name": row.name, "policy": row.policy, "status": status(row, found, result is not None)}


def _floor_note(found: Findings) -> list[str]:
    if CONTROL not in found.fidelity:
        return []
    floor = found.fidelity[CONTROL].figures.kl_mean
    return [f"Rounding alone (f16 with its last tokens decoded instead of prefilled) makes a KL of {floor:.2g} nats."]


def _draw(artefact: Artefact, found: Findings, rows: Sequence[Cells], panels: Sequence[Panel]) -> Figure:
    figure = plotting.new_figure(3.1 * len(panels) + 2.2, 1.3 + 0.38 * len(rows))
    all_axes = figure.subplots(1, len(panels), sharey=True)
    control = found.fidelity.get(CONTROL)
    floor = control.figures.kl_mean if control else 0
    # far below all figures it would squeeze them into a corner
    floor = floor if any(0 < (cells["kl_mean_nats"] or 0) <= NEAR * floor for cells in rows) else 0
    for axes, panel in zip(all_axes, panels, strict=True):
        plotting.quiet(axes)
        axes.grid(False, axis="y")
        axes.set_title(panel.title, fontsize=9, loc="left")
        values = [None if cells[panel.key] is None else cells[panel.key] * panel.scale for cells in rows]
        _limits(axes, panel, [value for value in values if value], floor)
        for y, (row, cells, value) in enumerate(zip(artefact.rows, rows, values, strict=True)):
            _mark(axes, panel, row, cells, (value, y))
    if floor > 0:
        all_axes[0].axvline(floor, color=plotting.FLOOR, linewidth=1, linestyle="--")
        all_axes[0].annotate(
            "rounding alone",
            (floor, 0.01),
            xycoords=all_axes[0].get_xaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            color=plotting.FLOOR,
        )
    all_axes[0].set_yticks(range(len(rows)), [plotting.plain(row.name) for row in artefact.rows])
    all_axes[0].set_ylim(len(rows) - 0.3, -0.6)
    return figure


def _limits(axes: Axes, panel: Panel, known: Sequence[float], floor: float) -> None:
    """Room for figures to the right of the marks."""
    if panel.log:
        axes.set_xscale("log")
        around = [*known, floor] if floor > 0 else [*known, 1]
        axes.set_xlim(min(around) / 2, max(around) * 8)
    elif panel.scale == 100:
        axes.set_xlim(0, 122)
        axes.set_xticks(range(0, 101, 20))
    else:
        axes.set_xlim(0, 1.3 * max([*known, 1]))


def _mark(axes: Axes, panel: Panel, row: Row, cells: Cells, at: tuple[float | None, int]) -> None:
    """A bar, or on a logarithmic axis, which has no beginning, a point; its interval and its figure."""
    value, y = at
    if value is None or (panel.log and value <= 0):
        failed = str(cells["status"]).startswith("failed")
        _note(axes, y, "0" if value is not None else "failed" if failed and panel is PANELS[0] else "-")
        return
    low, high = (cells[key] * panel.scale for key in panel.interval) if panel.interval else (value, value)
    error = [[min(value - low, 0.9 * value) if panel.log else value - low], [high - value]]
    if panel.log:
        axes.errorbar(value, y, xerr=error, fmt="o", color=row.colour, markersize=8, elinewidth=1.6, capsize=3)
    else:
        axes.barh(y, value, height=0.62, color=row.colour)
        if panel.interval:
            axes.errorbar(value, y, xerr=error, fmt="none", ecolor=INTERVAL, elinewidth=1.2, capsize=3)
    axes.annotate(
        format(value, panel.form),
        (high, y),
        xytext=(7 if panel.log else 4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _note(axes: Axes, y: float, text: str) -> None:
    """At the left edge of a row."""
    axes.annotate(text, (0.02, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8, color="#6b7280")
