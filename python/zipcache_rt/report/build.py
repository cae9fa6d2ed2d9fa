"""From a model to a folder of tables, figures and one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import checks, plotting
from .._core import ArgumentError, FileError
from ..eval import RunOptions
from ..fidelity_data import read
from ..whole_file import replacing
from . import figure1, figure3, figure5, figure6, page, tables, texts
from .findings import Findings
from .measure import Bench
from .plan import ARTEFACTS, FULL, Artefact, Size
from .shown import Shown
from .store import Store
from .subject import Subject

SHOW: dict[str, Callable[[Artefact, Findings], Shown]] = {
    "figure1": figure1.show,
    "figure3": figure3.show,
    "figure5": figure5.show,
    "figure6": figure6.show,
}


def build(
    models: Sequence[Path],
    out: Path,
    size: Size = FULL,
    *,
    artefacts: Sequence[Artefact] = ARTEFACTS,
    data: Sequence[Path] = (),
    device: str = "auto",
    gpu_layers: int | None = None,
    threads: int | None = None,
    command: str = "",
) -> Path:
    """Measures what `out` does not hold yet of these artefacts, then draws all that it holds. Returns the page.

    data: texts for fidelity; none: those of report/texts.py. command: how the page says it is made again. Raises
    ArgumentError, FileError, ModelError; a policy that fails is shown as failed instead.
    """
    plotting.check_library()
    if not models:
        raise ArgumentError("there are no models; accepted: one or more")
    contents = [(_text_name(path), read(path)) for path in data] or list(texts.own().items())
    if len({name for name, _ in contents}) < len(contents):
        raise ArgumentError("two texts have the same name; accepted: files that are named apart")
    _make_folder(out / "texts")
    store, lines = Store(out / "results.jsonl"), out / "lines.jsonl"
    options = RunOptions(device=device, gpu_layers=gpu_layers, threads=threads, template=False)
    subjects = [Subject.of(path, size, contents, options) for path in models]  # told before the work if one is no good
    for name, text in (*contents, *((subject.prompt_name, subject.prompt_text) for subject in subjects)):
        write(out / "texts" / name, text)
    sections: list[page.Section] = []
    for subject, folder in zip(subjects, _folders(models, out), strict=True):
        bench = Bench(subject, store, lines)
        bench.run(artefacts)
        found = Findings.of(subject, store, lines, bench.failures)
        shown = [SHOW.get(artefact.name, tables.show)(artefact, found) for artefact in ARTEFACTS]
        for one in shown:
            save(one, folder)
        sections.append(page.section(found, shown, folder, out, command))
    write(out / "index.html", page.render(sections))
    return out / "index.html"


def save(shown: Shown, folder: Path) -> None:
    """CSV, PNG and SVG of what was measured. Raises FileError."""
    if shown.figure is None:
        return
    _make_folder(folder)
    write(folder / f"{shown.artefact.name}.csv", shown.csv())
    for ending in (".png", ".svg"):
        plotting.write(shown.figure, folder / f"{shown.artefact.name}{ending}")


def write(path: Path, text: str) -> None:
    """Raises FileError."""
    with replacing(path) as part:
        part.write_text(checks.utf8(text, path.name).decode(), "utf-8")


def _text_name(path: Path) -> str:
    """As `out` keeps it: what was read is plain text, whatever it was read from."""
    return path.name if path.suffix == ".txt" else f"{path.name}.txt"


def _folders(models: Sequence[Path], out: Path) -> list[Path]:
    """Of each model's tables and figures, by its file's name."""
    stems = [path.stem for path in models]
    return [out / (stem if stems.count(stem) == 1 else f"{stem}-{i + 1}") for i, stem in enumerate(stems)]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror or error}") from error
