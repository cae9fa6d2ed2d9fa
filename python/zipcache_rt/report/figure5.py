"""Figure 5: line retrieval over the number of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import plotting
from .findings import Findings
from .plan import Artefact
from .shown import Cells, Column, Shown, failures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    Column("name", "cache"),
    Column("policy", "policy"),
    Column("n_lines", "lines", "d"),
    Column("n_cases", "cases", "d"),
    Column("prompt_tokens", "prompt, tokens", ",.0f"),
    Column("accuracy", "accuracy", ".1%"),
    Column("low", "95 % from", ".1%"),
    Column("high", "to", ".1%"),
    Column("same_reply", "reply as f16", ".1%"),
    Column("same_low", "95 % from", ".1%"),
    Column("same_high", "to", ".1%"),
    Column("ratio", "ratio with window", ".2f"),
)
SPREAD = 0.6  # of the distance between two numbers of lines


def show(artefact: Artefact, found: Findings) -> Shown:
    rows: list[Cells] = []
    for row in artefact.rows:
        for n_lines in sorted(n for n in found.lines if n):
            made = found.lines[n_lines].get(row.policy)
            if made and made.score:
                cells: Cells = {"name": row.name, "policy": row.policy, "n_lines": n_lines, "n_cases": made.n}
                cells |= {"prompt_tokens": made.prompt_tokens, "ratio": made.kv_ratio}
                cells |= {"accuracy": made.score.value, "low": made.score.low, "high": made.score.high}
                if same := made.same_reply:
                    cells |= {"same_reply": same.value, "same_low": same.low, "same_high": same.high}
                rows.append(cells)
    notes = failures(artefact.rows, found)
    if rows:
        notes.append(f"{rows[0]['n_cases']} prompts of each number of lines; bars: 95 % confidence (Wilson).")
    return Shown(artefact, COLUMNS, rows, _draw(artefact, rows) if rows else None, notes=notes)


def _draw(artefact: Artefact, rows: list[Cells]) -> Figure:
    figure = plotting.new_figure(12, 4.6)
    accuracy, agreement = figure.subplots(1, 2, sharey=True)
    numbers = sorted({cells["n_lines"] for cells in rows})
    methods = [row for row in artefact.rows if any(cells["policy"] == row.policy for cells in rows)]
    for axes, key, ends, title in (
        (accuracy, "accuracy", ("low", "high"), "right answers, %"),
        (agreement, "same_reply", ("same_low", "same_high"), "replies equal to those of f16, %"),
    ):
        plotting.quiet(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("lines in the prompt")
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        axes.set_ylim(-4, 104)
        for i, row in enumerate(methods):
            mine = [cells for cells in rows if cells["policy"] == row.policy and key in cells]
            shift = SPREAD * (i / max(1, len(methods) - 1) - 0.5)  # so that intervals stand side by side
            x = [numbers.index(cells["n_lines"]) + shift for cells in mine]
            y = np.array([100 * cells[key] for cells in mine])
            axes.plot(x, y, color=row.colour, linewidth=1.2, alpha=0.3)  # pale: intervals tell more than slopes
            axes.plot(x, y, row.marker, color=row.colour, label=row.name)
            low, high = (np.array([100 * cells[end] for cells in mine]) for end in ends)
            axes.errorbar(x, y, yerr=[y - low, high - y], fmt="none", ecolor=row.colour, elinewidth=0.8, alpha=0.45)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
