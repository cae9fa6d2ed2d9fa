"""What the Python API promises, on the demo model."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zipcache_rt import (
    ArgumentError,
    CancelledError,
    ContextError,
    KvOptions,
    Model,
    SamplerOptions,
    Session,
    ZipCacheError,
)

GREEDY = SamplerOptions(temperature=0)
PROMPT = "Once upon a time, in a small village by the sea,"


@pytest.fixture
def session(smollm2: Model) -> Session:
    return smollm2.session(n_ctx=512)


def test_info(smollm2: Model, smollm2_path: Path) -> None:
    info = smollm2.info
    assert (info.architecture, info.n_layers, info.n_embd, info.n_vocab) == ("llama", 30, 576, 49152)
    assert (info.n_heads, info.n_kv_heads, info.head_dim, info.n_ctx_train) == (9, 3, 64, 8192)
    assert info.file_bytes == smollm2_path.stat().st_size >= info.weights_mapped + info.weights_repacked


def test_prefill_decode_and_score_agree(smollm2: Model) -> None:
    ids = smollm2.tokenize(PROMPT)
    scored = smollm2.session().score(ids)
    assert scored.shape == (len(ids), smollm2.info.n_vocab) and scored.dtype == np.float32
    decoded = smollm2.session()
    for i, token in enumerate(ids):
        decoded.decode(token)
        assert np.array_equal(decoded.logits, scored[i])
    prefilled = smollm2.session()
    prefilled.prefill(np.array(ids))
    # Q8 activations round differently in another order of sums
    assert np.corrcoef(prefilled.logits, scored[-1])[0, 1] > 0.999
    assert (prefilled.n_past, prefilled.tokens) == (len(ids), ids)


def test_generation_is_deterministic_for_a_seed(smollm2: Model) -> None:
    def reply(seed: int) -> list[int]:
        made = smollm2.session().generate(PROMPT, max_tokens=24, sampler=SamplerOptions(temperature=1.0, seed=seed))
        return [piece.token for piece in made]

    assert reply(7) == reply(7)
    assert reply(7) != reply(8)


def test_greedy_takes_the_most_probable(smollm2: Model, session: Session) -> None:
    pieces = list(session.generate(PROMPT, max_tokens=8, sampler=GREEDY))
    check = smollm2.session()
    check.prefill(smollm2.tokenize(PROMPT))
    for piece in pieces:
        logits = check.logits.astype(np.float64)
        assert piece.token == int(logits.argmax())
        assert piece.logprob == pytest.approx(-np.log(np.exp(logits - logits.max()).sum()), abs=1e-4)
        check.decode(piece.token)
    assert "".join(piece.text for piece in pieces) == smollm2.detokenize([piece.token for piece in pieces])


def test_max_tokens_and_finish_reasons(session: Session) -> None:
    made = session.generate(PROMPT, max_tokens=5, sampler=GREEDY)
    assert made.finish_reason is None
    assert len(list(made)) == 5 and made.finish_reason == "length"
    assert list(session.generate([], max_tokens=0)) == []
    ended = session.model.session().chat([{"role": "user", "content": "Say hi."}], sampler=GREEDY, max_tokens=200)
    list(ended)
    assert ended.finish_reason == "stop"


def test_stop_strings_across_pieces(session: Session, smollm2: Model) -> None:
    whole = "".join(p.text for p in smollm2.session().generate(PROMPT, max_tokens=30, sampler=GREEDY))
    stop = whole[20:33]
    made = session.generate(PROMPT, max_tokens=30, sampler=GREEDY, stop=["never so", stop])
    assert "".join(piece.text for piece in made) == whole[: whole.index(stop)]
    assert made.finish_reason == "stop"


def test_closing_the_iterator_leaves_a_usable_session(session: Session, smollm2: Model) -> None:
    made = session.generate(PROMPT, max_tokens=30, sampler=GREEDY)
    pieces = [next(made) for _ in range(4)]
    made.close()
    assert list(made) == []
    assert session.tokens == smollm2.tokenize(PROMPT) + [p.token for p in pieces[:-1]]
    more = list(session.generate([pieces[-1].token], max_tokens=4, sampler=GREEDY))
    assert len(more) == 4 and session.n_past == len(smollm2.tokenize(PROMPT)) + 7


def test_a_refused_argument_costs_no_cache(session: Session) -> None:
    session.prefill([1, 2, 3])
    with pytest.raises(ArgumentError, match="max_tokens"):
        session.chat([{"role": "user", "content": "Hi"}], max_tokens=-1)
    assert session.tokens == [1, 2, 3]


def test_cancelling_a_reply_leaves_it_where_it_was(session: Session) -> None:
    with session.generate(PROMPT, max_tokens=6, sampler=GREEDY) as made:
        next(made)
        made.cancel()
        with pytest.raises(CancelledError):
            next(made)
        assert len(list(made)) == 5 and made.finish_reason == "length"
    assert list(made) == []


def test_close_lets_go(smollm2_path: Path) -> None:
    with Model(smollm2_path, threads=1) as model, model.session(n_ctx=8) as session:
        session.prefill([1])
    with pytest.raises(ArgumentError, match="the session is closed"):
        session.decode(1)
    with pytest.raises(ArgumentError, match="the model is closed"):
        model.tokenize("a")
    assert model.info.has_chat_template


def test_streaming_never_shows_half_a_character(smollm2: Model) -> None:
    # hot sampling makes plenty of lone bytes of longer characters
    hot = SamplerOptions(temperature=3.0, top_k=0, top_p=1, min_p=0, seed=3)
    pieces = list(smollm2.session().generate([1], max_tokens=150, sampler=hot))
    for piece in pieces:
        piece.text.encode("utf-8")  # no surrogates
    assert "".join(piece.text for piece in pieces) == smollm2.detokenize(piece.token for piece in pieces)


def test_cancel_from_another_thread(smollm2: Model) -> None:
    session = smollm2.session()
    session.prefill([1, 2, 3])
    before = session.logits
    timer = threading.Timer(0.05, session.cancel)
    timer.start()
    with pytest.raises(CancelledError):
        session.prefill([5] * 4000)
    timer.join()
    assert session.tokens == [1, 2, 3] and np.array_equal(session.logits, before)
    session.decode(4)
    assert session.n_past == 4


def test_progress_is_told_and_may_stop(smollm2: Model) -> None:
    told: list[float] = []
    session = smollm2.session()
    session.prefill([5] * 600, progress=told.append)
    assert told == sorted(told) and told[-1] == pytest.approx(1.0) and len(told) > 30

    def refuse(done: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        session.prefill([5] * 600, progress=refuse)
    assert session.n_past == 600
    assert list(session.generate([6], max_tokens=2, progress=told.append))


def test_fork_truncate_and_reset(session: Session, smollm2: Model) -> None:
    session.prefill(smollm2.tokenize(PROMPT))
    fork = session.fork()
    assert fork.tokens == session.tokens and np.array_equal(fork.logits, session.logits)
    fork.decode(100)
    session.decode(200)
    assert fork.tokens[-1] == 100 and session.tokens[-1] == 200
    session.truncate(5)
    assert session.n_past == 5
    with pytest.raises(ContextError, match="no logits yet"):
        _ = session.logits
    session.decode(100)
    again = smollm2.session()
    again.prefill(smollm2.tokenize(PROMPT))
    again.truncate(5)
    again.decode(100)
    assert np.array_equal(session.logits, again.logits)
    session.reset()
    assert (session.n_past, session.tokens, session.kv_stats().bytes) == (0, [], 0)
    with pytest.raises(ArgumentError, match="truncate to 1"):
        session.truncate(1)


def test_sessions_run_side_by_side(smollm2: Model) -> None:
    def reply(prompt: str, into: dict[str, list[int]]) -> None:
        made = smollm2.session().generate(prompt, max_tokens=12, sampler=GREEDY)
        into[prompt] = [piece.token for piece in made]

    alone: dict[str, list[int]] = {}
    together: dict[str, list[int]] = {}
    prompts = ["The sky is", "def main():", "2 + 2 ="]
    for prompt in prompts:
        reply(prompt, alone)
    threads = [threading.Thread(target=reply, args=(prompt, together)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_the_context_is_a_limit(smollm2: Model) -> None:
    session = smollm2.session(n_ctx=16)
    session.prefill([1] * 10)
    with pytest.raises(ContextError, match="7 tokens do not fit: the context holds 10 of at most 16"):
        session.prefill([1] * 7)
    assert session.n_past == 10
    made = session.generate([2], sampler=SamplerOptions(temperature=0, logit_bias={2: float("-inf")}))
    assert len(list(made)) == 6 and made.finish_reason == "length" and session.n_past == 16
    with pytest.raises(ContextError, match="1 tokens do not fit"):
        session.decode(1)


def test_kv_stats_and_stats(session: Session) -> None:
    session.prefill([1] * 100)
    session.decode(5)
    kv = session.kv_stats()
    assert kv.n_tokens == 101 and kv.elements == 101 * 30 * 2 * 3 * 64
    assert kv.bytes >= 2 * kv.elements and kv.bits == pytest.approx(8 * kv.bytes / kv.elements)
    assert kv.ratio == pytest.approx(16 / kv.bits)
    stats = session.stats
    assert (stats.prefill_tokens, stats.decode_tokens) == (100, 1)
    assert stats.prefill_rate > 0 and stats.decode_rate > 0
    assert stats.compress_seconds == stats.dequantize_seconds == 0


@pytest.mark.parametrize(("policy", "compresses"), [("f16", False), ("auto", True), ("zipcache", True), ("h2o", True)])
def test_stats_tell_what_the_cache_takes_of_a_prefill_when_asked(policy: str, compresses: bool, smollm2: Model) -> None:
    session = smollm2.session(kv=KvOptions.parse(policy))
    session.prefill([1] * 150)
    untimed = session.stats
    session.time_cache()
    session.prefill([2] * 150)
    stats = session.stats
    took, seconds = (stats.compress_seconds, stats.dequantize_seconds), stats.prefill_seconds - untimed.prefill_seconds
    assert (untimed.compress_seconds, untimed.dequantize_seconds) == (0, 0)
    assert all(one > 0 for one in took) if compresses else took == (0, 0)
    assert sum(took) < seconds
    session.decode(5)
    session.time_cache(False)
    session.prefill([3] * 150)
    assert (session.stats.compress_seconds, session.stats.dequantize_seconds) == took
    fork = session.fork()
    fork.prefill([4] * 10)
    assert fork.stats.compress_seconds == 0


def test_a_session_tells_what_was_planned_for_it(smollm2: Model) -> None:
    f16, auto = (smollm2.session(n_ctx=4000, kv=KvOptions.parse(policy)) for policy in ("f16", "auto"))
    assert f16.planned_bytes >= 4000 * 30 * 2 * 3 * 64 * 2 and auto.planned_bytes > 0
    assert smollm2.session(n_ctx=8000, kv=KvOptions.parse("f16")).planned_bytes > f16.planned_bytes
    assert smollm2.free_memory() > 0


def test_chat_prefills_only_what_is_new(smollm2: Model) -> None:
    session = smollm2.session()
    messages = [{"role": "user", "content": "My name is Ann. Say hello."}]
    reply = "".join(piece.text for piece in session.chat(messages, sampler=GREEDY, max_tokens=30))
    first = session.stats.prefill_tokens
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": "And goodbye?"}]
    list(session.chat(messages, sampler=GREEDY, max_tokens=5))
    new = session.stats.prefill_tokens - first
    assert 0 < new < len(smollm2.tokenize(smollm2.apply_chat_template(messages))) / 2


def test_a_model_says_where_its_layers_lie(smollm2: Model) -> None:
    with Model(smollm2.info.path, device="cpu", gpu_layers=0) as model:
        assert model.info.gpu_layers == 0 and not model.info.is_split and model.info.runs_on == "cpu"
    split = replace(smollm2.info, device="cuda:1", gpu_layers=12)
    assert split.is_split and split.runs_on == "cuda:1 (12 of 30 layers)"
    assert replace(split, gpu_layers=30).runs_on == "cuda:1"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: Model(m.info.path, device="tpu"), "device is 'tpu'; accepted: auto, cpu"),
        (lambda m: Model(m.info.path, device="metal:0"), "device is 'metal:0'; accepted: auto, cpu"),
        (lambda m: Model(m.info.path, device="cpu", gpu_layers=1), "gpu_layers is 1, and device 'cpu' is no GPU"),
        (lambda m: Model(m.info.path, gpu_layers=-1), "gpu_layers is -1; accepted: 0 or more, or None"),
        (lambda m: Model(m.info.path, gpu_layers=1.5), "gpu_layers is 1.5; accepted: 0 or more"),
        (lambda m: Model(m.info.path, gpu_layers=True), "gpu_layers is True"),
        (lambda m: Model(m.info.path, gpu_layers=2**31), "gpu_layers is 2147483648"),
        (lambda m: Model(m.info.path, threads=0), "threads is 0"),
        (lambda m: m.session(n_ctx=8193), "n_ctx is 8193; accepted: 1 to 8192"),
        (lambda m: m.session(n_ctx=-1), "n_ctx is -1"),
        (lambda m: KvOptions("q3"), "the KV policy is 'q3'; accepted: auto, zipcache"),
        (lambda m: m.session().prefill([]), "no tokens"),
        (lambda m: m.session().prefill([49152]), "token 0 is 49152; accepted: 0 to 49151"),
        (lambda m: m.session().prefill([1, -1]), "token 1 is -1"),
        (lambda m: m.session().prefill([1.5]), "tokens holds 1.5; accepted: integers"),
        (lambda m: m.session().prefill("text"), "tokens is str"),
        (lambda m: m.session().decode(2**40), "1099511627776"),
        (lambda m: m.session().score([True]), "holds True"),
        (lambda m: m.detokenize([10**6]), "1000000"),
        (lambda m: m.tokenize(b"bytes"), "text is bytes; accepted: str"),
        (lambda m: m.session().generate("a", max_tokens=-2), "max_tokens is -2"),
        (lambda m: m.session().generate("a", stop=[""]), "a stop string is empty"),
        (lambda m: m.session().generate("a", sampler=SamplerOptions(top_p=2)), "top_p is 2.0"),
        (lambda m: m.session().generate("a", sampler=SamplerOptions(seed=-1)), "sampler option"),
        (lambda m: m.session().chat([{"role": "user"}]), "message 0 is"),
        (lambda m: Model(5), "path is int; accepted: str or os.PathLike"),
        (lambda m: Model("a\0b"), "accepted: text without NUL"),
        (lambda m: Model("a\udc80b"), "lone surrogates"),
        (lambda m: Model(m.info.path, device=5), "device is int"),
        (lambda m: Model(m.info.path, threads=1.5), "threads is 1.5"),
        (lambda m: Model(m.info.path, progress=5), "progress is int"),
        (lambda m: m.session(n_ctx=1.5), "n_ctx is 1.5"),
        (lambda m: m.session(n_ctx=2**70), "n_ctx is 1180591620717411303424"),
        (lambda m: m.session(kv="f16"), "kv is str; accepted: KvOptions"),
        (lambda m: m.session().prefill(5), "tokens is int; accepted: token ids"),
        (lambda m: m.session().prefill(np.ones((2, 2), int)), r"tokens has the shape \(2, 2\)"),
        (lambda m: m.session().prefill([[1, 2]]), r"tokens holds \[1, 2\]"),
        (lambda m: m.session().prefill(np.ones(2)), "accepted: integers"),
        (lambda m: m.session().prefill(np.ones(2, bool)), "accepted: integers"),
        (lambda m: m.session().prefill([1], progress=5), "progress is int"),
        (lambda m: m.session().decode("a"), "token holds 'a'"),
        (lambda m: m.session().truncate(1.5), "n_tokens is 1.5"),
        (lambda m: m.session().truncate(2**70), "n_tokens is"),
        (lambda m: m.detokenize(5), "ids is int"),
        (lambda m: m.session().generate(5), "prompt is int"),
        (lambda m: m.session().generate(b"a"), "prompt is bytes"),
        (lambda m: m.session().generate("a", max_tokens=1.5), "max_tokens is 1.5"),
        (lambda m: m.session().generate("a", max_tokens=2**80), "max_tokens is"),
        (lambda m: m.session().generate("a", stop=[5]), "an element of stop is int"),
        (lambda m: m.session().generate("a", stop=5), "stop is int"),
        (lambda m: m.session().generate("a", sampler=None), "sampler is NoneType; accepted: SamplerOptions"),
        (lambda m: m.session().generate("a", sampler=SamplerOptions(top_k=1.5)), "sampler option"),
        (lambda m: m.session().generate("a", sampler=SamplerOptions(logit_bias=[1])), "sampler option"),
    ],
)
def test_bad_arguments_are_named(call: object, says: str, smollm2: Model) -> None:
    with pytest.raises(ZipCacheError, match=says):
        call(smollm2)  # type: ignore[operator]
