"""The CUDA backend beside the CPU's. Skipped where there is no GPU, or where the build has no CUDA."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import tiny_models
from helpers.compare import mean_kl
from zipcache_rt import (
    ArgumentError,
    CancelledError,
    ContextError,
    KvOptions,
    Model,
    ModelError,
    SamplerOptions,
    Session,
    _core,
)

CUDA = _core.cuda_devices()
needs_gpu = pytest.mark.skipif(not CUDA["descriptions"], reason=CUDA["missing"] or "a GPU")
GREEDY = SamplerOptions(temperature=0)
COMPRESSED = ("auto", "auto:2.8", "auto:2.4", "auto:5", "zipcache", "zipcache,per_head=true", "uniform", "q8_0", "q4_0")
COMPRESSED += ("kivi", "kivi:4")

# Tiny models with heads that the kernels read.
WIDE = replace(tiny_models.SHAPES["llama"], n_embd=128, head_dim=64, n_ff=192, n_layers=3)
SHAPES = {
    "llama": WIDE,
    "llama-128": replace(WIDE, head_dim=128),
    "llama-96-factors": replace(WIDE, head_dim=96, rope_factors=True, rope_base=500000.0),
    "qwen2": replace(WIDE, architecture="qwen2", biases=True, head_dim=80),
    "qwen3": replace(WIDE, architecture="qwen3", qk_norms=True),
    "gemma3": replace(tiny_models.SHAPES["gemma3"], n_embd=128, n_ff=192, head_dim=256, sliding_window=48),
    "phi3": replace(WIDE, architecture="phi3", fused=True),
}


def written(folder: Path, name: str) -> Path:
    shape = SHAPES[name]
    context = {f"{shape.architecture}__context_length": 4096}
    weights = tiny_models.random_weights(shape)
    return tiny_models.write(folder / f"{name}.gguf", shape, weights, vocabulary=True, **context)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    """The same one on the CPU and on the GPU."""
    path = written(tmp_path_factory.mktemp("cuda"), "llama")
    return Model(path, device="cpu"), Model(path, device="cuda")


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, tiny_models.N_VOCAB - 1, n).tolist()


def run(session: Session, ids: list[int], n_prefill: int) -> NDArray[np.float32]:
    """Logits after the prefill and after every further token."""
    session.prefill(ids[:n_prefill])
    first = session.logits
    return np.vstack([first, session.score(ids[n_prefill:])])


def turns(model: Model, kv: KvOptions, ids: list[int]) -> NDArray[np.float32]:
    """Logits of two prompts, and after every token that follows them."""
    session = model.session(kv=kv)
    half = len(ids) // 2
    return np.vstack([run(session, part, len(part) - 130) for part in (ids[:half], ids[half:])])


def test_devices_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "llama")
    for device in ("tpu", "cuda:99", "cuda:", "cuda:-1", "cuda:x", ""):
        with pytest.raises(ArgumentError, match=f"device is '{device}'; accepted: auto, cpu"):
            Model(path, device=device)
    if not CUDA["descriptions"]:
        with pytest.raises(ArgumentError, match="no CUDA device: "):
            Model(path, device="cuda")


@needs_gpu
@pytest.mark.parametrize("name", SHAPES)
def test_every_architecture_computes_as_the_cpu_does(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    ids = tokens(260)
    cpu, gpu = (run(Model(path, device=device).session(kv=KvOptions("f16")), ids, 200) for device in ("cpu", "cuda"))
    assert mean_kl(cpu, gpu) < 1e-4
    assert (cpu.argmax(-1) == gpu.argmax(-1)).mean() > 0.98


@needs_gpu
@pytest.mark.parametrize("kv", ["f16", "auto", "zipcache", "zipcache,per_head=true", "q8_0", "kivi"])
@pytest.mark.parametrize("gpu_layers", [1, WIDE.n_layers - 1])
def test_split_models_compute_as_the_cpu_does(gpu_layers: int, kv: str, tmp_path: Path) -> None:
    """Two turns; windows are compressed in both answers. Bounds are those of whole models."""
    path = written(tmp_path, "llama")
    ids = tokens(900)
    exact = turns(Model(path, device="cpu"), KvOptions("f16"), ids)
    cpu = turns(Model(path, device="cpu"), KvOptions.parse(kv), ids)
    model = Model(path, device="cuda", gpu_layers=gpu_layers)
    assert model.info.gpu_layers == gpu_layers and model.info.runs_on == f"cuda:0 ({gpu_layers} of 3 layers)"
    split = turns(model, KvOptions.parse(kv), ids)
    if kv == "f16":
        assert mean_kl(cpu, split) < 1e-4
    assert mean_kl(cpu, split) <= 0.5 * mean_kl(exact, cpu) + 1e-3
    assert mean_kl(exact, split) <= 1.2 * mean_kl(exact, cpu) + 1e-3


@needs_gpu
@pytest.mark.parametrize("name", SHAPES)
def test_every_architecture_is_split(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    ids = tokens(260)
    cpu = run(Model(path, device="cpu").session(kv=KvOptions("f16")), ids, 200)
    for gpu_layers in (1, SHAPES[name].n_layers - 1):
        split = run(Model(path, device="cuda", gpu_layers=gpu_layers).session(kv=KvOptions("f16")), ids, 200)
        assert mean_kl(cpu, split) < 1e-4
        assert (cpu.argmax(-1) == split.argmax(-1)).mean() > 0.98


@needs_gpu
@pytest.mark.parametrize("gpu_layers", [1, WIDE.n_layers - 1])
def test_split_sessions_do_what_others_do(gpu_layers: int, tmp_path: Path) -> None:
    """Fork, save, truncate and repeat to the bit; batches compute as single steps do."""
    model = Model(written(tmp_path, "llama"), device="cuda", gpu_layers=gpu_layers)
    ids = tokens(900)
    session = model.session(kv=KvOptions("auto"))
    run(session, ids[:500], 400)
    fork = session.fork()
    session.save(tmp_path / "talk.zcs")
    expected = run(session, ids[500:], 200)
    assert np.array_equal(run(fork, ids[500:], 200), expected)
    assert np.array_equal(run(model.load_session(tmp_path / "talk.zcs"), ids[500:], 200), expected)
    session.truncate(890)
    assert np.array_equal(session.score(ids[890:]), expected[-10:])
    assert compare_batch(model, ("auto", "f16", "zipcache"), 130) < 0.01


@needs_gpu
def test_a_split_session_tells_what_it_takes(tmp_path: Path) -> None:
    path = written(tmp_path, "llama")
    split, whole = (Model(path, device="cuda", gpu_layers=n) for n in (1, WIDE.n_layers))
    planned = [model.session(n_ctx=512, kv=KvOptions("f16")).planned_bytes for model in (split, whole)]
    assert 0 < planned[0] < planned[1]
    assert split.free_memory() > 0
    session = split.session(kv=KvOptions("auto"))
    session.time_cache()
    session.prefill(tokens(300))
    session.prefill(tokens(400))
    stats = session.stats
    assert min(stats.compress_seconds, stats.dequantize_seconds) > 0
    assert stats.compress_seconds + stats.dequantize_seconds < stats.prefill_seconds


@needs_gpu
def test_all_layers_or_none_are_not_split(tmp_path: Path) -> None:
    path = written(tmp_path, "llama")
    whole, asked = (Model(path, device="cuda", gpu_layers=n) for n in (None, WIDE.n_layers))
    assert whole.info.gpu_layers == asked.info.gpu_layers == WIDE.n_layers and whole.info.runs_on == "cuda:0"
    assert whole.info.weights_device == asked.info.weights_device and whole.info.weights_mapped == 0
    assert Model(path, device="cuda", gpu_layers=0).info.device == "cpu"
    assert Model(path, device="cuda", gpu_layers=99).info.runs_on == "cuda:0"


@needs_gpu
@pytest.mark.parametrize("n_prompt", [1, 5, 255, 256, 257, 2047, 2050])
def test_prompts_of_any_length_compute_as_on_the_cpu(n_prompt: int, models: tuple[Model, Model]) -> None:
    ids = tokens(n_prompt + 20)
    cpu, gpu = (run(model.session(kv=KvOptions("f16")), ids, n_prompt) for model in models)
    assert mean_kl(cpu, gpu) < 1e-4


@needs_gpu
def test_greedy_replies_are_the_cpus(models: tuple[Model, Model]) -> None:
    """Every token is the CPU's best one, or as good: random weights make near ties, which rounding decides."""
    prompt = tokens(40)
    gpu = models[1].session(kv=KvOptions("f16"))
    said = [piece.token for piece in gpu.generate(prompt, max_tokens=100, sampler=GREEDY)]
    logits = run(models[0].session(kv=KvOptions("f16")), prompt + said, len(prompt))[: len(said)]
    assert len(said) > 10
    assert (logits.max(-1) - logits[np.arange(len(said)), said]).max() < 0.05
    assert (logits.argmax(-1) == said).mean() > 0.9


@needs_gpu
@pytest.mark.parametrize("kv", COMPRESSED)
def test_compressed_caches_are_the_cpus(kv: str, models: tuple[Model, Model]) -> None:
    """Codes differ where scores are rounded otherwise; the cost is nearly the same, and so is the error."""
    ids = tokens(800)
    exact = run(models[0].session(kv=KvOptions("f16")), ids, 600)
    rows, bits = [], []
    for model in models:
        session = model.session(kv=KvOptions.parse(kv))
        rows.append(run(session, ids, 600))
        bits.append(session.kv_stats().compressed_bits)
    cpu, gpu = mean_kl(exact, rows[0]), mean_kl(exact, rows[1])
    assert mean_kl(rows[0], rows[1]) <= 0.5 * cpu + 1e-3
    assert gpu <= 1.2 * cpu + 1e-3
    assert bits[1] == pytest.approx(bits[0], rel=0.1)


@needs_gpu
@pytest.mark.parametrize("kv", ["f16", "auto", "zipcache"])
def test_runs_repeat_to_the_bit(kv: str, models: tuple[Model, Model]) -> None:
    ids = tokens(700)
    first, again = (run(models[1].session(kv=KvOptions.parse(kv)), ids, 500) for _ in "ab")
    assert np.array_equal(first, again)


@needs_gpu
@pytest.mark.parametrize("kv", ["f16", "auto", "zipcache"])
def test_forks_saves_and_later_turns_go_on(kv: str, models: tuple[Model, Model], tmp_path: Path) -> None:
    ids = tokens(900)
    session = models[1].session(kv=KvOptions.parse(kv))
    run(session, ids[:500], 400)
    fork = session.fork()
    session.save(tmp_path / "talk.zcs")
    expected = run(session, ids[500:], 200)
    assert np.array_equal(run(fork, ids[500:], 200), expected)
    assert np.array_equal(run(models[1].load_session(tmp_path / "talk.zcs"), ids[500:], 200), expected)


@needs_gpu
@pytest.mark.parametrize("kv", ["f16", "auto", "zipcache"])
def test_a_saved_session_goes_on_on_the_other_device(kv: str, models: tuple[Model, Model], tmp_path: Path) -> None:
    """What one has compressed, the other reads: they differ by what their kernels round."""
    ids = tokens(560)
    for here, there in (models, models[::-1]):
        session = here.session(kv=KvOptions.parse(kv))
        run(session, ids[:500], 400)
        session.save(tmp_path / "talk.zcs")
        other = there.load_session(tmp_path / "talk.zcs")
        assert mean_kl(session.score(ids[500:]), other.score(ids[500:])) < 5e-3


@needs_gpu
def test_timing_the_cache_changes_nothing_else(models: tuple[Model, Model]) -> None:
    ids = tokens(700)
    timed, plain = (models[1].session(kv=KvOptions("auto")) for _ in range(2))
    timed.time_cache()
    for session in (timed, plain):
        session.prefill(ids[:300])
        session.prefill(ids[300:])
    assert np.array_equal(timed.logits, plain.logits)
    stats = timed.stats
    assert min(stats.compress_seconds, stats.dequantize_seconds) > 0
    assert stats.compress_seconds + stats.dequantize_seconds < stats.prefill_seconds
    assert plain.stats.compress_seconds == plain.stats.dequantize_seconds == 0


@needs_gpu
def test_truncation_into_the_window_is_exact(models: tuple[Model, Model]) -> None:
    ids = tokens(400)
    session = models[1].session(kv=KvOptions("auto"))
    session.prefill(ids[:300])
    expected = session.score(ids[300:330])
    session.truncate(300)
    assert np.array_equal(session.score(ids[300:330]), expected)


@needs_gpu
def test_models_that_do_not_run_there_say_so_and_auto_avoids_them(tmp_path: Path) -> None:
    shape = tiny_models.SHAPES["llama"]
    path = tiny_models.write(tmp_path / "narrow.gguf", shape, tiny_models.random_weights(shape))
    with pytest.raises(ModelError, match=r"cuda:0 does not compute attention .* accepted: device='cpu'"):
        Model(path, device="cuda")
    assert Model(path).info.device == "cpu"


@needs_gpu
@pytest.mark.parametrize("kv", ["mikv", "h2o", "snapkv", "gear"])
def test_policies_that_only_the_cpu_has_are_refused(kv: str, models: tuple[Model, Model]) -> None:
    with pytest.raises(
        ArgumentError, match=f"KV policy {kv} does not run on cuda:0, which has no .*; accepted: the device cpu"
    ):
        models[1].session(kv=KvOptions(kv))


@needs_gpu
def test_a_cancelled_call_changes_nothing(models: tuple[Model, Model]) -> None:
    ids = tokens(260)
    session, other = (models[1].session(kv=KvOptions("auto")) for _ in "ab")
    for s in (session, other):
        s.prefill(ids[:200])
    session.cancel()
    with pytest.raises(CancelledError):
        session.decode(ids[200])
    session.cancel()
    with pytest.raises(CancelledError):
        session.prefill(ids[200:])
    assert session.tokens == other.tokens
    assert np.array_equal(session.score(ids[200:]), other.score(ids[200:]))


@needs_gpu
def test_sessions_take_turns(models: tuple[Model, Model]) -> None:
    """One records a step while the others compute: nothing of theirs gets into it."""
    jobs = [(kv, tokens(420, seed), 150 + 30 * seed) for seed, kv in enumerate(("f16", "auto", "zipcache", "f16"))]

    def one(job: tuple[str, list[int], int]) -> NDArray[np.float32]:
        kv, ids, n_prompt = job
        return run(models[1].session(kv=KvOptions(kv)), ids, n_prompt)

    alone = [one(job) for job in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(one, jobs))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def compare_batch(model: Model, kvs: tuple[str, ...], n_steps: int) -> float:
    """Mean KL of n_steps batches beside single steps on the same device; prompts of different lengths."""

    def opened() -> list[Session]:
        sessions = [model.session(kv=KvOptions.parse(kvs[i % len(kvs)])) for i in range(5)]
        for i, session in enumerate(sessions):
            session.prefill(tokens(30 + 70 * i, i))
        return sessions

    batch, alone = opened(), opened()
    kl = []
    for step in range(n_steps):
        ids = tokens(len(batch), 1000 + step)
        model.decode_batch(batch, ids)
        for session, token in zip(alone, ids, strict=True):
            session.decode(token)
        kl.append(mean_kl(np.vstack([s.logits for s in alone]), np.vstack([s.logits for s in batch])))
    assert [session.tokens for session in batch] == [session.tokens for session in alone]
    return float(np.mean(kl))


@needs_gpu
@pytest.mark.parametrize("name", SHAPES)
def test_batches_compute_as_single_steps_do(name: str, tmp_path: Path) -> None:
    """Windows of 100 tokens fill up at different steps."""
    model = Model(written(tmp_path, name), device="cuda")
    assert compare_batch(model, ("f16",), 40) < 1e-3  # products of several columns are in TF32
    assert compare_batch(model, ("auto", "f16", "zipcache"), 130) < 0.01  # and codes round otherwise


@needs_gpu
@pytest.mark.parametrize(
    "kvs", [("auto",), ("zipcache",), ("q8_0",), ("auto", "q8_0", "f16", "zipcache,per_head=true")]
)
def test_batches_of_any_policies(kvs: tuple[str, ...], models: tuple[Model, Model]) -> None:
    """One that needs the general kernel brings it to all."""
    assert compare_batch(models[1], kvs, 130) < 0.01


@needs_gpu
@pytest.mark.parametrize(("kv", "bound"), [("f16", 1e-3), ("auto", 0.1)])
def test_batches_change_their_members(kv: str, bound: float, models: tuple[Model, Model]) -> None:
    """The recorded step is kept for the same sessions, and made anew for others.

    Products of several columns round otherwise, and a compressed cache's codes follow: a single step may be far off.
    """
    model = models[1]
    sessions, alone = ([model.session(kv=KvOptions(kv)) for _ in range(4)] for _ in "ab")
    for i in range(4):
        for session in (sessions[i], alone[i]):
            session.prefill(tokens(40 + 30 * i, i))
    random = np.random.default_rng(1)
    for step in range(60):
        members = random.permutation(4)[: 2 + step % 3].tolist()
        ids = tokens(len(members), step)
        for _ in range(2):
            model.decode_batch([sessions[i] for i in members], ids)
            for i, token in zip(members, ids, strict=True):
                alone[i].decode(token)
        if step % 5 == 0:  # what a batch must take note of although no window moved
            i = members[0]
            for group in (sessions, alone):
                group[i].truncate(group[i].n_past - 1)
                group[i].decode(7)
        if step % 7 == 0:
            i = members[-1]
            sessions[i], alone[i] = sessions[i].fork(), alone[i].fork()
            assert mean_kl(alone[i].logits[None], sessions[i].logits[None]) < bound


@needs_gpu
def test_batches_repeat_to_the_bit_and_one_is_a_single_step(models: tuple[Model, Model]) -> None:
    def run_batch(n: int) -> NDArray[np.float32]:
        sessions = [models[1].session(kv=KvOptions("auto")) for _ in range(n)]
        for i, session in enumerate(sessions):
            session.prefill(tokens(60 + i, i))
        rows = []
        for token in tokens(120, 9):
            models[1].decode_batch(sessions, [token] * n)
            rows += [session.logits for session in sessions]
        return np.vstack(rows)

    assert np.array_equal(run_batch(3), run_batch(3))
    alone = models[1].session(kv=KvOptions("auto"))
    alone.prefill(tokens(60, 0))
    assert np.array_equal(run_batch(1), alone.score(tokens(120, 9)))


@needs_gpu
def test_a_batch_that_is_too_large_for_the_kernel_is_refused(models: tuple[Model, Model]) -> None:
    most = 4096 // WIDE.n_kv_heads
    sessions = [models[1].session(n_ctx=16, kv=KvOptions("f16")) for _ in range(most + 1)]
    with pytest.raises(ArgumentError, match=f"batch of {most + 1} sessions is too large .* accepted: up to {most}"):
        models[1].decode_batch(sessions, [1] * (most + 1))
    assert all(session.n_past == 0 for session in sessions)


@needs_gpu
def test_a_context_that_does_not_fit_is_refused(models: tuple[Model, Model], tmp_path: Path) -> None:
    shape = replace(WIDE, n_kv_heads=4)
    path = tiny_models.write(
        tmp_path / "long.gguf", shape, tiny_models.random_weights(shape), llama__context_length=1 << 29
    )
    model = Model(path, device="cuda")
    with pytest.raises(ContextError, match=r"takes \d+ MiB with the KV policy f16, and cuda:0 has .* n_ctx up to \d+"):
        model.session(n_ctx=1 << 29, kv=KvOptions("f16"))
    assert 1 << 16 < model.session(kv=KvOptions("f16")).n_ctx < 1 << 29
