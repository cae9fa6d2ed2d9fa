"""Several sessions in one pass: each goes on as it would alone."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import tiny_models
from helpers.compare import mean_kl, top1_agreement
from zipcache_rt import ArgumentError, CancelledError, ContextError, KvOptions, Model, SamplerOptions, Session

GREEDY = SamplerOptions(temperature=0)
LENGTHS = (0, 40, 99, 150, 260)  # prompts: windows of 100 tokens fill up at different steps

# Tiny models whose heads hold whole blocks of 32 channels, so that every policy fits.
WIDE = replace(tiny_models.SHAPES["llama"], head_dim=32)
SHAPES = {
    "llama": WIDE,
    "llama-rope-factors": replace(WIDE, rope_factors=True),
    "qwen2": replace(WIDE, architecture="qwen2", biases=True),
    "qwen3": replace(WIDE, architecture="qwen3", qk_norms=True),
    "gemma3": replace(tiny_models.SHAPES["gemma3"], head_dim=32, sliding_window=48),
    "phi3": replace(WIDE, architecture="phi3", fused=True),
    "mixtral": replace(WIDE, n_experts=8, n_experts_used=2),
}


def tiny(folder: Path, name: str, threads: int = 2) -> Model:
    shape = SHAPES[name]
    context = {f"{shape.architecture}__context_length": 4096}
    weights = tiny_models.random_weights(shape)
    path = tiny_models.write(folder / f"{name}.gguf", shape, weights, vocabulary=True, **context)
    return Model(path, device="cpu", threads=threads)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny(tmp_path_factory.mktemp("wide"), "llama")


def random_tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, tiny_models.N_VOCAB - 1, n).tolist()


def opened(model: Model, kvs: Sequence[str], lengths: Sequence[int] = LENGTHS) -> list[Session]:
    """One session a length, with the policies in turn."""
    sessions = []
    for i, n in enumerate(lengths):
        session = model.session(kv=KvOptions.parse(kvs[i % len(kvs)]))
        if n > 0:
            session.prefill(random_tokens(n, i))
        sessions.append(session)
    return sessions


def logits_of(sessions: Sequence[Session]) -> NDArray[np.float32]:
    return np.vstack([session.logits for session in sessions])


def state(sessions: Sequence[Session]) -> list[tuple[list[int], bytes]]:
    return [(session.tokens, session.logits.tobytes()) for session in sessions]


def compare_steps(sessions: list[Session], alone: list[Session], n: int) -> tuple[float, float]:
    """Of n batches beside single steps: mean KL, share of equal best tokens."""
    batched, single = [], []
    steps = np.array([random_tokens(n, 100 + i) for i in range(len(sessions))]).T
    for tokens in steps.tolist():
        sessions[0].model.decode_batch(sessions, tokens)
        for session, token in zip(alone, tokens, strict=True):
            session.decode(token)
        batched.append(logits_of(sessions))
        single.append(logits_of(alone))
    assert [session.tokens for session in sessions] == [session.tokens for session in alone]
    return mean_kl(np.vstack(single), np.vstack(batched)), top1_agreement(np.vstack(single), np.vstack(batched))


# A code that rounds otherwise, or another token taken for salient, costs more than rounding itself.
@pytest.mark.parametrize(
    ("kvs", "most"), [(("f16",), 1e-5), (("auto",), 0.01), (("zipcache",), 0.01), (("auto", "f16", "q8_0"), 0.01)]
)
@pytest.mark.parametrize("name", SHAPES)
def test_each_session_is_as_if_it_were_alone(name: str, kvs: tuple[str, ...], most: float, tmp_path: Path) -> None:
    model = tiny(tmp_path, name)
    sessions, alone = opened(model, kvs), opened(model, kvs)
    kl, top1 = compare_steps(sessions, alone, 130)
    assert kl <= most
    assert top1 >= 0.97


def test_a_batch_of_one_is_a_single_step(wide: Model) -> None:
    for kv in ("f16", "auto", "zipcache"):
        (session,), (alone,) = opened(wide, [kv], [90]), opened(wide, [kv], [90])
        for token in random_tokens(30, 7):
            wide.decode_batch([session], [token])
            alone.decode(token)
            assert np.array_equal(session.logits, alone.logits)


def test_sessions_come_and_go(wide: Model) -> None:
    """Any order, other steps in between, sessions that end and new ones in their place."""
    kvs = ("auto", "f16")
    sessions, alone = opened(wide, kvs), opened(wide, kvs)
    random = np.random.default_rng(3)
    for step in range(80):
        members = random.permutation(len(sessions))[: random.integers(1, len(sessions) + 1)].tolist()
        tokens = random_tokens(len(members), step)
        wide.decode_batch([sessions[i] for i in members], tokens)
        for i, token in zip(members, tokens, strict=True):
            alone[i].decode(token)
        i = int(random.integers(len(sessions)))
        actions: list[Callable[[Session], object]] = [
            lambda s: s.decode(5),
            lambda s: s.prefill([1, 2, 3]),
            lambda s: s.truncate(s.n_past - 1) if s.n_past > 1 and s.least_kept < s.n_past else None,
        ]
        action = actions[step % 4] if step % 4 < len(actions) else None
        for group in (sessions, alone):
            if action:
                action(group[i])
            else:
                group[i] = group[i].fork() if step % 8 < 4 else opened(wide, [kvs[i % 2]], [step])[0]
    for session, other in zip(sessions, alone, strict=True):
        assert session.tokens == other.tokens
        for s in (session, other):
            s.decode(9)
        assert mean_kl(other.logits[None], session.logits[None]) <= 0.01


def test_a_real_model_batches_as_it_decodes(smollm2: Model) -> None:
    prompts = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time"]
    sessions, alone = ([smollm2.session(n_ctx=256) for _ in prompts] for _ in "ab")
    for group in (sessions, alone):
        for session, prompt in zip(group, prompts, strict=True):
            session.prefill(smollm2.tokenize(prompt))
    for _ in range(8):
        tokens = [int(session.logits.argmax()) for session in alone]
        smollm2.decode_batch(sessions, tokens)
        for session, token in zip(alone, tokens, strict=True):
            session.decode(token)
        # Q8 activations round differently in another order of sums
        assert mean_kl(logits_of(alone), logits_of(sessions)) <= 0.01


def test_what_does_not_go_together_is_named(wide: Model, tmp_path: Path) -> None:
    a, b, c = opened(wide, ["f16"], [4, 5, 6])
    other = tiny(tmp_path, "qwen2").session()
    full = wide.session(n_ctx=3)
    full.prefill([1, 2, 3])
    cases: list[tuple[list[object], list[object], type[Exception], str]] = [
        ([], [], ArgumentError, "got 0 sessions and 0 tokens; accepted: one session or more, and a token for each"),
        ([a, b], [1], ArgumentError, "got 2 sessions and 1 tokens"),
        ([a, b, a], [1, 2, 3], ArgumentError, "session 0 is session 2, too; accepted: different ones"),
        ([a, other], [1, 2], ArgumentError, "session 1 is of another model"),
        ([a, None], [1, 2], ArgumentError, "session 1 is NoneType; accepted: Session"),
        ([a, b], [1, 10_000], ArgumentError, "token 1 is 10000; accepted: 0 to 95"),
        ([a, b], [1, 2.5], ArgumentError, "tokens holds 2.5; accepted: integers"),
        ([a, b, full], [1, 2, 3], ContextError, "session 2: 1 tokens do not fit: the context holds 3 of at most 3"),
    ]
    before = state([a, b, c])
    for sessions, tokens, error, message in cases:
        with pytest.raises(error, match=message):
            wide.decode_batch(sessions, tokens)  # type: ignore[arg-type]
        assert state([a, b, c]) == before
    wide.decode_batch([a, b, c], [1, 2, 3])
    assert [session.n_past for session in (a, b, c)] == [5, 6, 7]


def test_positions_that_depend_on_the_context_keep_sessions_apart(tmp_path: Path) -> None:
    shape = SHAPES["phi3"]
    weights = tiny_models.random_weights(shape)
    for name, last in (("short", 2.0), ("long", 8.0)):
        weights[f"rope_factors_{name}.weight"] = np.linspace(1, last, shape.head_dim // 2, dtype=np.float32)
    limits = {"phi3__context_length": 4096, "phi3__rope__scaling__original_context_length": 512}
    model = Model(tiny_models.write(tmp_path / "long.gguf", shape, weights, **limits), device="cpu")
    short, less, long = (model.session(n_ctx=n) for n in (512, 100, 513))
    model.decode_batch([short, less], [1, 2])
    with pytest.raises(ArgumentError, match="session 1 has an n_ctx of 513 .* accepted: all up to 512 or all above"):
        model.decode_batch([short, long], [1, 2])


@pytest.mark.parametrize("kv", ["f16", "auto"])
def test_a_cancelled_batch_changes_nothing(kv: str, wide: Model) -> None:
    sessions, others = opened(wide, [kv], [99, 100, 130]), opened(wide, [kv], [99, 100, 130])
    before = state(sessions)
    sessions[1].cancel()
    with pytest.raises(CancelledError, match="session 1"):
        wide.decode_batch(sessions, [1, 2, 3])
    assert state(sessions) == before
    for group in (sessions, others):
        wide.decode_batch(group, [1, 2, 3])
    assert np.array_equal(logits_of(sessions), logits_of(others))


def test_batches_that_share_sessions_do_not_wait_for_each_other(wide: Model) -> None:
    sessions = opened(wide, ["f16", "auto"], [3, 4, 5, 6])

    def work(order: list[int]) -> None:
        for _ in range(60):
            wide.decode_batch([sessions[i] for i in order], [1] * len(order))

    orders = ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0], [1, 3, 0])
    threads = [threading.Thread(target=work, args=(order,), daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    times = [sum(i in order for order in orders) for i in range(4)]
    assert [session.n_past for session in sessions] == [n + 60 * t for n, t in zip((3, 4, 5, 6), times, strict=True)]


def replies(model: Model, prompts: Sequence[list[int]], **options: object) -> list[list[int]]:
    said: list[list[int]] = [[] for _ in prompts]
    for i, piece in model.generate_batch(prompts, **options):  # type: ignore[arg-type]
        said[i].append(piece.token)
    return said


def test_replies_at_once_are_those_one_by_one(wide: Model) -> None:
    prompts = [random_tokens(n, n) for n in (3, 20, 95, 140)]
    for sampler in (GREEDY, SamplerOptions(temperature=0.7, seed=5)):
        options = {"max_tokens": 40, "sampler": sampler}
        alone = [[piece.token for piece in wide.session().generate(p, **options)] for p in prompts]  # type: ignore[arg-type]
        assert replies(wide, prompts, **options) == alone


def test_replies_at_once_go_on_in_sessions_and_end_one_by_one(wide: Model) -> None:
    roomy, tight = wide.session(), wide.session(n_ctx=20)
    endless = replace(GREEDY, logit_bias={wide.info.n_vocab - 1: -100.0})
    said = replies(wide, [[1, 2], [3, 4]], sessions=[roomy, tight], max_tokens=30, sampler=endless)
    assert [len(tokens) for tokens in said] == [30, 19]
    assert roomy.tokens == [1, 2, *said[0][:-1]]
    assert tight.tokens == [3, 4, *said[1][:-1]]
    assert replies(wide, []) == []
    with pytest.raises(ArgumentError, match="2 prompts got 1 sessions"):
        wide.generate_batch([[1], [2]], sessions=[roomy])
    with pytest.raises(ArgumentError, match="same session"):
        wide.generate_batch([[1], [2]], sessions=[roomy, roomy])
    with pytest.raises(ArgumentError, match="prompts is str"):
        wide.generate_batch("text")
