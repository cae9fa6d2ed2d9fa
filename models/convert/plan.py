"""What a conversion will write, checked against what the checkpoint holds. Nothing is written before this is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGMLQuantizationType

from .._core import FileError, ModelError
from ..quantize_plan import Facts, Tensor, file_type
from ..quantize_plan import plan as plan_types
from .architectures import find_family
from .architectures.family import Family, Metadata, Shape, read_shape, recipes
from .checkpoint import ITEM_BYTES, Checkpoint, Stored, member
from .config import Config, read_object, shown
from .recipe import Recipe
from .rope import read_rope
from .tokenizer import read_tokenizer
from .types import n_bytes


@dataclass(frozen=True)
class Step:
    """A tensor to be written."""

    recipe: Recipe
    kind: GGMLQuantizationType
    sources: tuple[Stored, ...]  # in the checkpoint; none for what is computed

    @property
    def n_bytes(self) -> int:
        return n_bytes(self.recipe.n_elements, self.kind)


@dataclass(frozen=True)
class Plan:
    architecture: str
    checkpoint: Checkpoint
    metadata: dict[str, Any]  # by GGUF's whole keys
    steps: tuple[Step, ...]
    notices: tuple[str, ...]  # what the file will do otherwise than the checkpoint

    @property
    def n_bytes(self) -> int:
        return sum(step.n_bytes for step in self.steps)


def make_plan(folder: Path, type_name: str) -> Plan:
    """Raises FileError, ModelError or ArgumentError that names what is wrong with the checkpoint or the type."""
    number = file_type(type_name)
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; accepted: one as transformers saves it, with config.json")
    whole = read_object(member(folder, "config.json"))
    family = find_family(whole)
    config = (whole.child("text_config") if family.text_config else whole).with_defaults(family.defaults)
    whole.only("quantization_config", lambda x: x is None, "none: weights as bf16, f16 or f32")
    shape = read_shape(config, family)
    shape, notices = _within_window(config, family, shape)
    rope = read_rope(config, family, shape)
    metadata = _hyperparameters(family, shape) | family.metadata(config, shape) | rope.metadata
    checkpoint = Checkpoint(folder)
    made = [*_checked(recipes(family, config, shape, checkpoint), family, shape, checkpoint), *rope.tensors]
    tokenizer = read_tokenizer(folder, config, shape.n_vocab)
    facts = Facts(family.name, shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.n_experts)
    kinds = plan_types([Tensor(recipe.name, recipe.shape) for recipe in made], type_name, facts)
    general = {
        "general.type": "model",
        "general.name": _name(whole, folder),
        "general.quantization_version": GGML_QUANT_VERSION,
        "general.file_type": number,
    }
    return Plan(
        architecture=family.name,
        checkpoint=checkpoint,
        metadata=general | {f"{family.name}.{key}": value for key, value in metadata.items()} | tokenizer.metadata,
        steps=tuple(Step(recipe, kinds[recipe.name], _sources(recipe, checkpoint)) for recipe in made),
        notices=(*notices, *tokenizer.notices),
    )


def _within_window(config: Config, family: Family, shape: Shape) -> tuple[Shape, list[str]]:
    """Where GGUF's form of a family knows no sliding windows, the model is the same up to the length of one."""
    if family.has_windows or not _slides(config, shape):
        return shape, []
    window = config.integer("sliding_window", 1, 1 << 30)
    if window >= shape.n_ctx:
        return shape, []
    notice = (
        f"GGUF's {family.name} has no sliding windows: the context is {window} tokens, one window, not {shape.n_ctx}"
    )
    return replace(shape, n_ctx=window), [notice]


def _slides(config: Config, shape: Shape) -> bool:
    """Whether any layer has a sliding window."""
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return False
    kinds, first = config.get("layer_types"), config.get("max_window_layers")
    if isinstance(kinds, list):
        return "sliding_attention" in kinds
    return not isinstance(first, int) or first < shape.n_layers


def _hyperparameters(family: Family, shape: Shape) -> Metadata:
    values: Metadata = {
        "block_count": shape.n_layers,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.norm_epsilon,
        "vocab_size": shape.n_vocab,
    }
    if family.experts:
        values |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_experts_used}
    return values


def _name(config: Config, folder: Path) -> str:
    given = config.get("_name_or_path")
    for text in (Path(given).name[:200] if isinstance(given, str) else "", folder.resolve().name):
        if text and text.isprintable():
            return text
    return "model"


def _sources(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Stored, ...]:
    return tuple(checkpoint.tensors[name] for name in dict.fromkeys(part.source for part in recipe.parts))


def _checked(made: Iterable[Recipe], family: Family, shape: Shape, checkpoint: Checkpoint) -> list[Recipe]:
    """Every source must be there in its shape, and every tensor of the checkpoint must be a source."""
    used: dict[str, tuple[int, ...]] = {}
    rows: dict[str, int] = {}
    out = []
    for recipe in made:  # one at a time: a nonsensical number of layers ends at the first that is missing
        out.append(recipe)
        for part in recipe.parts:
            if part.source not in checkpoint:
                raise ModelError(f"{checkpoint.folder} lacks the tensor {part.source} {_shape_of(recipe, part.count)}")
            rows[part.source] = max(rows.get(part.source, 0), part.first + part.count)
            used[part.source] = recipe.shape
    for name, like in used.items():
        _check_source(checkpoint.tensors[name], rows[name], like)
    ignored = (*family.ignored, "lm_head.") if shape.tied else family.ignored
    extra = [name for name in checkpoint.tensors if name not in used and not any(x in name for x in ignored)]
    if extra:
        names = ", ".join(map(shown, sorted(extra)[:3])) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        raise ModelError(f"{checkpoint.folder} holds {names}, which {family.name} has no place for")
    return out


def _check_source(tensor: Stored, n_rows: int, like: tuple[int, ...]) -> None:
    """like: the shape of a tensor made of it."""
    if tensor.kind not in ITEM_BYTES:
        raise ModelError(f"the tensor {tensor.name} is {tensor.kind}; accepted: {', '.join(ITEM_BYTES)}")
    n_columns = like[-1] if len(like) > 1 else 1
    shape = tensor.shape
    fits = len(shape) == len(like) or (len(like) == 3 and len(shape) == 2)
    elements = 1
    for n in shape:
        elements *= n
    if (
        not fits
        or tensor.n_columns != n_columns
        or elements != n_rows * n_columns
        or (len(shape) == 3 and shape[0] != like[0])
    ):
        wanted = (n_rows, n_columns) if len(like) > 1 else (n_rows,)
        raise ModelError(f"the tensor {tensor.name} has the shape {list(shape)}; accepted: {list(wanted)}")


def _shape_of(recipe: Recipe, n_rows: int) -> str:
    return str([n_rows, recipe.shape[-1]] if len(recipe.shape) > 1 else [n_rows])
