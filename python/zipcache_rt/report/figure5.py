"""Figure 5: line retrieval over the number of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    Column("ratio", "ratio with window", ".2f"),
)
SPREAD = 0.6  # of the distance between two numbers of lines


def show(artefact: Artefact, found: Findings) -> Shown:
    rows: list[Cells] = []
    for row in artefact.rows:
        for n_lines in sorted(n for n in found.lines if n):
            made = found.lines[n_lines].get(row.policy)
            if made and made.score:
                same = made.same_reply.value if made.same_reply else None
                cells: Cells = {"name": row.name, "policy": row.policy, "n_lines": n_lines, "n_cases": made.n}
                cells |= {"accuracy": made.score.value, "low": made.score.low, "high": made.score.high}
                rows.append(cells | {"prompt_tokens": made.prompt_tokens, "same_reply": same, "ratio": made.kv_ratio})
    notes = failures(artefact.rows, found)
    if rows:
        notes.append(f"{rows[0]['n_cases']} prompts of each number of lines; bars: 95 % confidence (Wilson).")
    return Shown(artefact, COLUMNS, rows, _draw(artefact, rows) if rows else None, notes=notes)


def _draw(artefact: Artefact, rows: list[Cells]) -> Figure:
    figure = plotting.new_figure(12, 4.6)
    accuracy, agreement = figure.subplots(1, 2, sharey=True)
    numbers = sorted({cells["n_lines"] for cells in rows})
    methods = [row for row in artefact.rows if any(cells["policy"] == row.policy for cells in rows)]
    for axes, key, title in (
        (accuracy, "accuracy", "right answers, %"),
        (agreement, "same_reply", "replies equal to those of f16, %"),
    ):
        plotting.quiet(axes)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("lines in the prompt")
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        axes.set_ylim(-4, 104)
        for i, row in enumerate(methods):
            mine = [cells for cells in rows if cells["policy"] == row.policy and cells[key] is not None]
            shift = SPREAD * (i / max(1, len(methods) - 1) - 0.5)  # so that intervals stand side by side
            x = [numbers.index(cells["n_lines"]) + shift for cells in mine]
            y = [100 * cells[key] for cells in mine]
            axes.plot(x, y, color=row.colour, marker=row.marker, linewidth=1.2, label=row.name)
            if key == "accuracy":
                down = [100 * (cells["accuracy"] - cells["low"]) for cells in mine]
                up = [100 * (cells["high"] - cells["accuracy"]) for cells in mine]
                axes.errorbar(x, y, yerr=[down, up], fmt="none", ecolor=row.colour, elinewidth=0.8, alpha=0.45)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
