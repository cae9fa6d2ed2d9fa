"""Figure 1: accuracy over compression, prefill and decode latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import plotting
from .findings import Findings
from .plan import Artefact
from .shown import Cells, Column, Shown, busy_note, failures, status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    Column("name", "cache"),
    Column("policy", "policy"),
    Column("same_top", "same top token", ".1%"),
    Column("kl_mean_nats", "KL, nats", ".4f"),
    Column("ratio", "ratio", ".2f"),
    Column("context_tokens", "context, tokens", ",d"),
    Column("prefill_seconds", "prefill, s", ".2f"),
    Column("decode_ms_per_token", "decode, ms/token", ".2f"),
    Column("status", ""),
)
PANELS = (
    ("ratio", "compression ratio of compressed tokens"),
    ("prefill_seconds", "prefill, s"),
    ("decode_ms_per_token", "decode, ms a token"),
)


def show(artefact: Artefact, found: Findings) -> Shown:
    size = found.subject.size
    context = size.contexts[-1]
    rows: list[Cells] = []
    for row in artefact.rows:
        result, speed = found.fidelity.get(row.policy), found.speed.get((row.policy, context))
        measured = result is not None and speed is not None
        cells: Cells = {"name": row.name, "policy": row.policy, "context_tokens": context}
        if result:
            cells |= {"same_top": result.figures.same_top, "kl_mean_nats": result.figures.kl_mean}
            cells |= {"ratio": 16 / result.bits}
        if speed:
            cells |= {"prefill_seconds": speed.prefill_seconds}
            cells |= {"decode_ms_per_token": 1e3 * speed.decode_seconds / size.n_decode}
        rows.append(cells | {"status": status(row, found, measured)})
    figure = _draw(artefact, rows, context) if any("same_top" in cells for cells in rows) else None
    return Shown(artefact, COLUMNS, rows, figure, notes=[*failures(artefact.rows, found), *busy_note(found)])


def _draw(artefact: Artefact, rows: list[Cells], context: int) -> Figure:
    figure = plotting.new_figure(13, 4.6)
    all_axes = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (key, title) in zip(all_axes, PANELS, strict=True):
        plotting.quiet(axes)
        axes.set_xlabel(title if key == "ratio" else f"{title}, context of {context:,} tokens")
        for row, cells in zip(artefact.rows, rows, strict=True):
            if key in cells and "same_top" in cells:
                size = 13 if row.marker == "*" else 8
                axes.plot(cells[key], 100 * cells["same_top"], row.marker, color=row.colour, markersize=size)
        axes.margins(x=0.2, y=0.15)
        if not axes.lines:  # ticks would be of nothing
            axes.set_xticks([])
            axes.annotate(
                "not measured yet", (0.5, 0.5), xycoords="axes fraction", ha="center", color=plotting.REFERENCE
            )
    all_axes[0].set_ylabel("same top token as f16, %")
    for axes, (key, _) in zip(all_axes, PANELS, strict=True):
        points = [
            (cells[key], 100 * cells["same_top"], cells["name"])
            for cells in rows
            if key in cells and "same_top" in cells
        ]
        plotting.label_points(figure, axes, points)
    return figure
