"""Quantizing: packed values by bound, files against llama.cpp's quantizer, and what is refused."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from numpy.typing import NDArray

from helpers import llama_cpp_quantize, tiny_models
from helpers.compare import mean_kl
from helpers.dequantize import dequantize as to_f32
from zipcache_rt import ArgumentError, FileError, KvOptions, Model, ModelError
from zipcache_rt.quantize import Facts, Plan, Tensor, file_type, plan, quantize_file, quantize_tensor
from zipcache_rt.quantize_plan import MIXES

Kind = gguf.GGMLQuantizationType
WIDE = tiny_models.Shape("llama", n_layers=2, n_embd=256, n_heads=8, n_kv_heads=2, head_dim=32, n_ff=512)

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="needs llama-cpp-python (the 'oracle' extra), which builds llama.cpp",
)


def rows(n_rows: int, n_columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal values with a few outliers, a constant row and a row of zeros."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((n_rows, n_columns)).astype(np.float32)
    values[random.random(values.shape) < 0.01] *= 6
    values[0], values[1] = 0, 0.7
    return values


def block_spread(values: NDArray[np.float32], block: int, signed: bool) -> NDArray[np.float32]:
    """What a block's grid must span: from -max to max where it has no min of its own, else min (at most 0) to max."""
    blocks = values.reshape(len(values), -1, block)
    spread = 2 * np.abs(blocks).max(-1) if signed else blocks.max(-1) - np.minimum(0, blocks.min(-1))
    return np.repeat(spread, block, -1)


# kind, bits, elements of a scale, whether the grid is around zero, error in steps. Half a step is rounding. A grid
# around zero lacks one end, where up to a whole step is cut off; k-quants give up outliers for the others, and round
# scales too.
BOUNDS = [
    (Kind.Q8_0, 8, 32, True, 0.57),
    (Kind.Q4_0, 4, 32, True, 1.01),
    (Kind.Q4_1, 4, 32, False, 0.52),
    (Kind.Q5_0, 5, 32, True, 1.01),
    (Kind.Q5_1, 5, 32, False, 0.52),
    (Kind.Q2_K, 2, 16, False, 2.0),
    (Kind.Q3_K, 3, 16, True, 2.0),
    (Kind.Q4_K, 4, 32, False, 2.0),
    (Kind.Q5_K, 5, 32, False, 2.0),
    (Kind.Q6_K, 6, 16, True, 2.0),
]


@pytest.mark.parametrize(
    ("kind", "bits", "block", "signed", "steps"), BOUNDS, ids=lambda case: getattr(case, "name", "")
)
def test_packed_values_are_near(kind: Kind, bits: int, block: int, signed: bool, steps: float) -> None:
    values = rows(67, 1024)
    error = np.abs(dequantize(quantize_tensor(values, kind), kind) - values)
    step = block_spread(values, block, signed) / (2**bits - 1)
    worst = (error / np.maximum(step, 1e-9)).max()
    print(f"{kind.name}: {worst:.3f} steps, rms {np.sqrt((error**2).mean()):.4f}")
    assert worst <= steps


def test_floats_are_rounded_once() -> None:
    values = rows(5, 77)
    assert np.array_equal(quantize_tensor(values, Kind.F32).view(np.float32), values)
    assert np.array_equal(quantize_tensor(values, Kind.F16).view(np.float16), values.astype(np.float16))
    error = np.abs(dequantize(quantize_tensor(values, Kind.BF16), Kind.BF16) - values)
    assert (error <= np.abs(values) / 256).all()


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q6_K])
def test_threads_and_shapes_do_not_matter(kind: Kind) -> None:
    values = rows(6 * 300, 512)
    expected = quantize_tensor(values, kind, threads=1)
    for threads in (2, 5, None):
        assert np.array_equal(quantize_tensor(values, kind, threads), expected)
    experts = quantize_tensor(values.reshape(6, 300, 512), kind)
    assert experts.shape[:2] == (6, 300) and np.array_equal(experts.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("values", "kind", "error", "says"),
    [
        (np.full((2, 32), np.nan), Kind.Q8_0, ModelError, "a.weight holds -?nan in row 0, column 0; accepted for q8_0"),
        (np.float32([[0] * 32, [0] * 31 + [np.inf]]), Kind.F16, ModelError, "a.weight holds inf in row 1, column 31"),
        (np.full((1, 32), 7e4), Kind.Q4_0, ModelError, "a.weight holds 70000.* up to 65504"),
        (np.zeros((1, 48)), Kind.Q4_0, ArgumentError, "a.weight has rows of 48 elements; accepted for q4_0: multiples of 32"),
        (np.zeros((1, 32)), Kind.Q4_K, ArgumentError, "accepted for q4_K: multiples of 256"),
        (np.zeros((1, 256)), Kind.IQ2_XXS, ArgumentError, "type 16 cannot be quantized to; accepted: the numbers of f32"),
        (np.zeros((1, 256)), 12345, ArgumentError, "type 12345 cannot"),
        (np.zeros((0, 256)), Kind.Q4_0, ArgumentError, "a.weight is no array of float32 with elements"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed(values: NDArray[np.float64], kind: Kind, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        quantize_tensor(values.astype(np.float32), kind, name="a.weight")


def test_other_types_of_array_are_refused() -> None:
    with pytest.raises(ArgumentError, match="no array of float32"):
        quantize_tensor(np.zeros((1, 32)), Kind.Q8_0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="threads is 0"):
        quantize_tensor(np.zeros((1, 32), np.float32), Kind.Q8_0, threads=0)


def write(path: Path, shape: tiny_models.Shape, seed: int = 0) -> Path:
    return tiny_models.write(path, shape, tiny_models.random_weights(shape, seed), vocabulary=True)


def quantize(source: Path, target: Path, name: str, **options: bool) -> Path:
    quantize_file(Plan.of(source, name, **options), target, threads=2)
    return target


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Name: type, shape, bytes; in the file's order."""
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, tuple(map(int, t.shape)), int(t.n_bytes)) for t in reader.tensors}


@needs_llama_cpp
@pytest.mark.parametrize("name", [name for name in MIXES if name != "f32"])
def test_the_file_is_llama_cpps(name: str, tmp_path: Path) -> None:
    source = quantize(write(tmp_path / "f32.gguf", replace(WIDE, n_layers=4)), tmp_path / "f16.gguf", "f16")
    source = source if name != "f16" else tmp_path / "f32.gguf"
    expected = llama_cpp_quantize.quantize(source, tmp_path / "theirs.gguf", file_type(name))
    made = quantize(source, tmp_path / "ours.gguf", name)
    assert tensors(made) == tensors(expected)
    assert made.read_bytes() == expected.read_bytes()


SHAPES = {
    "tied": replace(WIDE, tied=True),
    "many layers": replace(WIDE, n_layers=18, n_ff=256),
    "70B": replace(WIDE, n_layers=80, n_ff=32, n_kv_heads=1),
    "groups of 8": replace(WIDE, n_kv_heads=1),
    "odd rows": replace(WIDE, n_embd=96, n_heads=3, n_kv_heads=1, n_ff=352),
    "odder rows": replace(WIDE, n_embd=48, n_heads=3, n_kv_heads=1, head_dim=16, n_ff=256),
    "phi3": replace(WIDE, architecture="phi3", fused=True, n_layers=9),
    "qwen2": replace(WIDE, architecture="qwen2", biases=True),
    "mixtral": replace(WIDE, n_experts=8, n_experts_used=2, n_ff=256, n_layers=9),
    "qwen3moe": replace(
        WIDE, architecture="qwen3moe", qk_norms=True, n_experts=12, n_experts_used=2, n_ff=256, n_layers=9
    ),
}


@needs_llama_cpp
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mixes_are_llama_cpps(shape: str, tmp_path: Path) -> None:
    source = write(tmp_path / "f32.gguf", SHAPES[shape])
    names = ["q4_0", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k"]
    if shape == "odder rows":
        names.remove("q4_0")  # llama.cpp has no type for such rows in that mix
    for name in names if shape != "70B" else ["q3_k_s", "q4_k_m"]:
        expected = tensors(llama_cpp_quantize.quantize(source, tmp_path / "theirs.gguf", file_type(name)))
        steps = Plan.of(source, name).steps
        got = {s.source.name: (s.kind.name, tuple(reversed(s.shape)), s.n_bytes) for s in steps}
        assert list(got.items()) == list(expected.items()), name


@needs_llama_cpp
def test_requantizing_is_llama_cpps(smollm2_path: Path, tmp_path: Path) -> None:
    number = file_type("q4_0")
    expected = llama_cpp_quantize.quantize(smollm2_path, tmp_path / "theirs.gguf", number, allow_requantize=True)
    made = quantize(smollm2_path, tmp_path / "ours.gguf", "q4_0", allow_requantize=True)
    assert made.read_bytes() == expected.read_bytes()


# mean KL to the same weights as f32: what rounding activations to 8 bits, as ggml's products do, costs such wild models;
# more where it turns a router's choice
@pytest.mark.parametrize(("shape", "kl"), [(WIDE, 0.01), (SHAPES["mixtral"], 0.2)], ids=["dense", "experts"])
@pytest.mark.parametrize("name", [name for name in MIXES if name != "f32"])
def test_quantized_files_run(shape: tiny_models.Shape, kl: float, name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "f32.gguf", replace(shape, n_layers=2))
    small = quantize(source, tmp_path / "small.gguf", name)
    tokens = np.random.default_rng(1).integers(0, tiny_models.N_VOCAB, 40).astype(np.int32)
    f16 = KvOptions("f16")
    expected = Model(to_f32(small, tmp_path / "again.gguf", Kind.F32), threads=2).session(kv=f16).score(tokens)
    session = Model(small, threads=2).session(kv=f16)
    got = session.score(tokens)
    print(f"{name}: KL {mean_kl(expected, got):.5f}")
    assert mean_kl(expected, got) <= kl
    session.reset()
    session.prefill(tokens)
    assert mean_kl(expected[-1:], session.logits[None]) <= 10 * kl


def test_a_plan_needs_no_file() -> None:
    given = [
        Tensor("blk.10.attn_v.weight", (64, 256)),
        Tensor("blk.9.ffn_down_exps.weight", (4, 256, 512)),
        Tensor("blk.9.ffn_gate_inp.weight", (4, 256)),
        Tensor("blk.9.attn_norm.weight", (256,)),
        Tensor("blk.9.attn_q.bias", (256,)),
        Tensor("output_norm.weight", (256,), Kind.F16),
        Tensor("token_embd.weight", (96, 256)),
    ]
    made = plan(given, "Q4_K_M", Facts("qwen3moe", 24, 8, 2, 4))
    assert list(made.items()) == [
        ("output_norm.weight", Kind.F16),
        ("token_embd.weight", Kind.Q6_K),  # it gives the logits too
        ("blk.9.attn_norm.weight", Kind.F32),
        ("blk.9.attn_q.bias", Kind.F32),
        ("blk.9.ffn_down_exps.weight", Kind.Q4_K),
        ("blk.9.ffn_gate_inp.weight", Kind.F32),
        ("blk.10.attn_v.weight", Kind.Q6_K),
    ]
    assert file_type("q4_k") == file_type("q4_k_m") == 15
    with pytest.raises(ArgumentError, match=r"the type is 'q9_0'; accepted: f32, f16, bf16, q8_0"):
        plan(given, "q9_0", Facts("llama", 1, 1, 1))


def test_a_quantized_source_is_asked_about(tmp_path: Path) -> None:
    source = quantize(write(tmp_path / "f32.gguf", WIDE), tmp_path / "q8.gguf", "q8_0")
    with pytest.raises(ModelError, match=r"tensor output.weight is q8_0 already.*--allow-requantize"):
        Plan.of(source, "q4_0")
    assert Plan.of(source, "q4_0", allow_requantize=True).bytes_after < Plan.of(source, "q8_0").bytes_after


def test_a_bad_value_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = tiny_models.random_weights(WIDE)
    weights["blk.1.ffn_up.weight"][3, 5] = np.inf
    source = tiny_models.write(tmp_path / "f32.gguf", WIDE, weights)
    target = tmp_path / "small.gguf"
    target.write_bytes(b"older")
    with pytest.raises(ModelError, match=r"tensor blk.1.ffn_up.weight holds inf in row 3, column 5"):
        quantize(source, target, "q4_0")
    assert target.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 2


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    source = write(tmp_path / "f32.gguf", WIDE)
    before = source.read_bytes()
    with pytest.raises(ArgumentError, match="a folder or the source"):
        quantize(source, tmp_path / "." / "f32.gguf", "q4_0")
    for target in (tmp_path / "none" / "a.gguf", source / "a.gguf", tmp_path):
        with pytest.raises(FileError, match="cannot write"):
            quantize(source, target, "q4_0")
    with pytest.raises(ArgumentError, match="NUL"):
        quantize(source, Path("a\0.gguf"), "q4_0")
    assert source.read_bytes() == before


def test_metadata_is_kept(tmp_path: Path) -> None:
    shape = replace(WIDE, extra={"note": "kept", "flag": True, "number": 0.1})
    source = write(tmp_path / "f32.gguf", shape)
    reader = gguf.GGUFReader(quantize(source, tmp_path / "small.gguf", "q5_1"))
    before = {name: field.contents() for name, field in gguf.GGUFReader(source).fields.items()}
    after = {name: field.contents() for name, field in reader.fields.items()}
    added = {"general.quantization_version": 2, "general.file_type": 9}
    assert {k: v for k, v in after.items() if k[:5] != "GGUF."} == {
        k: v for k, v in before.items() if k[:5] != "GGUF."
    } | added


def test_a_wider_alignment_is_kept(tmp_path: Path) -> None:
    weights = tiny_models.random_weights(WIDE)
    source = tmp_path / "f32.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_custom_alignment(256)
    for key, value in tiny_models.metadata(WIDE).items():
        tiny_models.add_value(writer, key, value)
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    small = quantize(source, tmp_path / "small.gguf", "q4_0")
    assert all(t.data_offset % 256 == 0 for t in gguf.GGUFReader(small).tensors)
    assert Model(small).session().score([1, 2, 3]).shape == (3, tiny_models.N_VOCAB)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zipcache_rt.quantize", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_tool(tmp_path: Path) -> None:
    source, target = write(tmp_path / "f32.gguf", WIDE), tmp_path / "small.gguf"
    shown = run(str(source), str(target), "--type", "q4_k_m", "--dry-run")
    assert shown.returncode == 0 and not target.exists()
    assert "blk.1.attn_v.weight" in shown.stdout and "q6_k" in shown.stdout and "bits a weight" in shown.stdout
    done = run(str(source), str(target), "--type", "q4_k_m", "--threads", "2")
    assert done.returncode == 0 and done.stderr == "" and "q4_k_m: " in done.stdout and "MiB" in done.stdout
    assert Model(target).info.quantization in ("q4_K", "q6_K")


@pytest.mark.parametrize(
    ("content", "says"), [(b"nothing", "not a GGUF file"), (b"GGUF\x03\0\0\0" + b"\xff" * 16, "number of tensors")]
)
def test_damaged_sources_are_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(content)
    done = run(str(bad), str(tmp_path / "small.gguf"), "--type", "q8_0")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and says in done.stderr


def test_gguf_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'zipcache-rt\[convert\]'"):
        Plan.of(tmp_path / "any.gguf", "q8_0")
