"""Sessions in files: they go on to the same bit, appear whole or not at all, and survive any damage."""

import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import tiny_models
from zipcache_rt import ArgumentError, ContextError, FileError, KvOptions, Model, Session, ZipCacheError

KV = {
    "f16": KvOptions("f16"),
    "auto": KvOptions("auto"),
    "zipcache": KvOptions("zipcache", seed=5),
    "kivi": KvOptions("kivi"),
    "mikv": KvOptions("mikv"),
    "gear": KvOptions("gear"),
    "h2o": KvOptions("h2o"),
    "snapkv": KvOptions("snapkv"),
    "q4_0": KvOptions("q4_0"),
}
WORDS = "The sea was calm, and the lamp of the old tower turned slowly over the harbour while the boats came home. "

MASK = 2**64 - 1
PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def xxh64(data: bytes) -> int:
    """XXH64 with seed 0, from its specification."""
    p1, p2, p3, p4, p5 = PRIMES

    def left(x: int, n: int) -> int:
        x &= MASK
        return (x << n | x >> (64 - n)) & MASK

    def mixed(lane: int, word: int) -> int:
        return left(lane + word * p2, 31) * p1 & MASK

    whole = len(data) // 32 * 32
    h = p5
    if whole:
        lanes = [p1 + p2, p2, 0, -p1 & MASK]
        words = struct.unpack(f"<{whole // 8}Q", data[:whole])
        for i, word in enumerate(words):
            lanes[i % 4] = mixed(lanes[i % 4], word)
        h = sum(left(lane, n) for lane, n in zip(lanes, (1, 7, 12, 18), strict=True))
        for lane in lanes:
            h = (h ^ mixed(0, lane)) * p1 + p4
    h = (h + len(data)) & MASK
    rest = data[whole:]
    while len(rest) >= 8:
        h = (left(h ^ mixed(0, int.from_bytes(rest[:8], "little")), 27) * p1 + p4) & MASK
        rest = rest[8:]
    if len(rest) >= 4:
        h = (left(h ^ int.from_bytes(rest[:4], "little") * p1 & MASK, 23) * p2 + p3) & MASK
        rest = rest[4:]
    for byte in rest:
        h = left(h ^ byte * p5 & MASK, 11) * p1 & MASK
    h = (h ^ h >> 33) * p2 & MASK
    h = (h ^ h >> 29) * p3 & MASK
    return h ^ h >> 32


def signed(data: bytes) -> bytes:
    """The file with the checksum of what it now holds."""
    return data[:-8] + struct.pack("<Q", xxh64(data[:-8]))


def greedy(session: Session, n: int) -> list[int]:
    made = []
    for _ in range(n):
        made.append(int(session.logits.argmax()))
        session.decode(made[-1])
    return made


def least_kept(session: Session) -> int:
    """What sliding windows have not forgotten."""
    return session._open.least_kept


def tiny(path: Path, name: str = "llama", seed: int = 0, **changes: object) -> Model:
    shape = tiny_models.Shape(**{**vars(tiny_models.SHAPES[name]), **changes})
    return Model(tiny_models.write(path, shape, tiny_models.random_weights(shape, seed)), threads=1)


@pytest.fixture(scope="module")
def demo(smollm2_path: Path) -> Model:
    return Model(smollm2_path, threads=1)  # so that it is quick on a busy machine too


@pytest.mark.parametrize("kv", KV)
def test_goes_on_to_the_same_bit(kv: str, demo: Model, tmp_path: Path) -> None:
    talk = demo.session(n_ctx=1024, kv=KV[kv])
    talk.prefill(demo.tokenize(WORDS * 20)[:400])
    n = 20 if kv == "f16" else 110  # a window is compressed before the save, and another one after it
    greedy(talk, n)
    path = tmp_path / "talk.zcs"
    talk.save(path)
    loaded = demo.load_session(path)
    assert (loaded.n_ctx, loaded.n_past, loaded.tokens) == (1024, 400 + n, talk.tokens)
    assert np.array_equal(loaded.logits, talk.logits)
    ours, theirs = loaded.kv_stats(), talk.kv_stats()
    for name in ("elements", "n_tokens", "compressed_bytes", "compressed_elements"):
        assert getattr(ours, name) == getattr(theirs, name)
    loaded.save(tmp_path / "again.zcs")
    assert (tmp_path / "again.zcs").read_bytes() == path.read_bytes()
    unsaved, fork = talk.fork(), loaded.fork()
    assert greedy(loaded, n) == greedy(unsaved, n)
    assert np.array_equal(loaded.logits, unsaved.logits)
    assert greedy(fork, 5) == loaded.tokens[400 + n : 405 + n]
    for session in (loaded, unsaved):
        session.truncate(300)
        session.prefill([10, 11, 12])
    assert np.array_equal(loaded.logits, unsaved.logits)


STATES = {
    "empty": lambda s: None,
    "reset": lambda s: (s.prefill([1, 2]), s.reset()),
    "one token": lambda s: s.decode(1),
    "window only": lambda s: s.prefill([1, 2, 3]),
    "cut without logits": lambda s: (s.prefill(list(range(90))), s.truncate(50)),
    "cut and gone on": lambda s: (s.prefill(list(range(90))), s.truncate(41), [s.decode(t % 96) for t in range(60)]),
    "window just full": lambda s: (s.prefill(list(range(40))), [s.decode(t) for t in range(16)]),
    "full": lambda s: s.prefill([t % 96 for t in range(256)]),
}
TINY_KV = {
    "f16": KvOptions("f16"),
    "auto": KvOptions("auto", window=16, recent=8),
    "narrow": KvOptions("auto", bits=2.2, window=16, recent=8, per_head=True),
    "zipcache": KvOptions("zipcache", window=16),
    "evicting": KvOptions("zipcache", low_bits=0, window=16, probes="all"),
    "kivi": KvOptions("kivi", window=32, recent=8),
    "mikv": KvOptions("mikv", window=16),
    "gear": KvOptions("gear", window=16),
    "h2o": KvOptions("h2o", window=16, recent=4),
    "snapkv": KvOptions("snapkv", window=16),
    "q4_0": KvOptions("q4_0", window=16),
}


@pytest.mark.parametrize("kv", TINY_KV)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_every_state(name: str, kv: str, tmp_path: Path) -> None:
    model = tiny(tmp_path / "tiny.gguf", name, head_dim=32)
    for state, reach in STATES.items():
        session = model.session(kv=TINY_KV[kv])
        try:
            reach(session)
        except ContextError:  # what sliding windows forgot
            continue
        session.save(tmp_path / "state.zcs")
        loaded = model.load_session(tmp_path / "state.zcs")
        loaded.save(tmp_path / "again.zcs")
        assert (tmp_path / "again.zcs").read_bytes() == (tmp_path / "state.zcs").read_bytes(), state
        assert (loaded.tokens, least_kept(loaded)) == (session.tokens, least_kept(session)), state
        for both in (session, loaded):
            if both.n_past < 200:
                both.prefill([7, 8])
                greedy(both, 40)
        assert loaded.tokens == session.tokens and np.array_equal(loaded.logits, session.logits), state


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Session:
    session = tiny(tmp_path_factory.mktemp("small") / "tiny.gguf").session()
    session.prefill(list(range(60)))
    return session


def test_a_save_replaces_a_file_whole(small: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk.zcs"
    path.write_bytes(b"older")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    small.save(os.fspath(link))
    assert small.model.load_session(path).tokens == small.tokens
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "talk.zcs"]


def test_a_save_that_fails_leaves_nothing(small: Session, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write .*/none/talk.zcs: No such file"):
        small.save(tmp_path / "none" / "talk.zcs")
    with pytest.raises(FileError, match="not a regular file"):
        small.save(tmp_path)
    with pytest.raises(FileError, match="cannot write .*name too long"):
        small.save(tmp_path / ("a" * 300))
    with pytest.raises(FileError, match="cannot write"):
        small.save("")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileError, match="not a regular file"):
        small.save("/dev/null")
    with pytest.raises(FileError, match="cannot write /proc/talk.zcs"):  # where nobody may, whoever runs the test
        small.save("/proc/talk.zcs")


def test_a_full_disk_leaves_the_older_file(small: Session, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    path = tmp_path / "talk.zcs"
    path.write_bytes(b"older")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(FileError, match="cannot write .*talk.zcs: File too large"):
            small.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in tmp_path.iterdir()] == ["talk.zcs"] and path.read_bytes() == b"older"


def test_bad_paths_are_named(small: Session) -> None:
    for call in (small.save, small.model.load_session):
        with pytest.raises(ArgumentError, match="path is int; accepted: str or os.PathLike"):
            call(5)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="without NUL or lone surrogates"):
            call("a\0b")
    with pytest.raises(FileError, match="cannot open"):
        small.model.load_session("/none/talk.zcs")
    small.model.session().close()
    closed = small.fork()
    closed.close()
    with pytest.raises(ArgumentError, match="the session is closed"):
        closed.save("talk.zcs")


def test_another_model_is_refused(small: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk.zcs"
    small.save(path)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(Path(small.model.info.path).read_bytes())
    assert Model(moved, threads=1).load_session(path).tokens == small.tokens
    for other in (tiny(tmp_path / "other.gguf", seed=1), tiny(tmp_path / "meta.gguf", rope_base=20000.0)):
        with pytest.raises(FileError, match="talk.zcs was saved with another model"):
            other.load_session(path)


def test_the_checksum_is_xxh64(small: Session, tmp_path: Path) -> None:
    assert xxh64(b"") == 0xEF46DB3751D8E999 and xxh64(b"abc") == 0x44BC2CF5AD770999
    small.save(tmp_path / "talk.zcs")
    data = (tmp_path / "talk.zcs").read_bytes()
    assert signed(data) == data


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b"", "is empty"),
        (lambda b: b[:5], "not a session file"),
        (lambda b: b"GGUF" + b[4:], "not a session file: it does not begin with ZIPCSESS"),
        (lambda b: b[:20], "ends within its header"),
        (lambda b: b[:8] + b"\x01" + b[9:], "session file of version 1; accepted: 2"),
        (lambda b: signed(b[:8] + b"\x01" + b[9:]), "session file of version 1; accepted: 2"),
        (lambda b: b[:12] + b[12:16][::-1] + b[16:], "stores numbers another way"),
        (lambda b: b[:-1], "checksum does not match"),
        (lambda b: b + b"\0", "checksum does not match"),
        (lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:], "checksum does not match"),
        (lambda b: signed(b[:16] + b"\0" * 8 + b[24:]), "another model"),
        (lambda b: signed(b[:24] + b"\x04nope" + b[29:]), "the KV option policy is 'nope'"),
        (lambda b: signed(b[:25] + b"\xff" + b[26:]), "no ASCII text"),
        (lambda b: signed(b[:29] + struct.pack("<d", 5.0) + b[37:]), "saved by a version whose KV policy auto"),
        (lambda b: signed(b[:-20] + b[-8:]), "ends within"),
        (lambda b: signed(b[:-8] + b"\0" + b[-8:]), "goes on behind its end"),
    ],
)
def test_damage_is_named(damage: object, says: str, small: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk.zcs"
    small.save(path)
    data = path.read_bytes()
    assert data[24:29] == b"\x04auto"
    path.write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(FileError, match=rf"talk.zcs.*{says}"):
        small.model.load_session(path)


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few changes, most of them where the structure is; in most files the checksum is then made right again."""
    out = bytearray(data)
    for _ in range(source.choice([1, 1, 1, 2, 4])):
        at = source.randrange(24, len(out))
        kind = source.randrange(8)
        if kind <= 1:
            out[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            at = source.randrange(24, min(len(out), 400))
            out[at] = source.randrange(256)
        elif kind == 3:
            del out[at : at + source.choice([1, 2, 4, 8, 32])]
        elif kind == 4:
            out[at:at] = source.randbytes(source.randint(1, 16))
        elif kind == 5:
            # where a small count may be
            places = [i for i in range(24, len(out) - 8) if out[i] and not any(out[i + 2 : i + 8])]
            at = source.choice(places or [at])
            number = int.from_bytes(out[at : at + 8], "little")
            number = source.choice([0, 1, number + 1, number - 1, 2 * number, -1, 2**31, 2**62, 2**63 - 1])
            out[at : at + 8] = (number & MASK).to_bytes(8, "little")
        elif kind == 6:
            # a float that is none
            at = at // 4 * 4
            out[at : at + 4] = struct.pack("<f", source.choice([0.0, -1.0, 3e38, float("inf"), float("nan")]))
        else:
            out = out[: max(32, source.randrange(len(out)))]
        if len(out) < 64:
            break
    return signed(bytes(out)) if source.random() < 0.85 else bytes(out)


def fuzz_sessions(model: Model) -> Iterator[Session]:
    for kv in TINY_KV.values():
        session = model.session(kv=kv)
        session.prefill([t % 96 for t in range(45)])
        for token in range(20):
            session.decode(token)
        session.truncate(max(62, least_kept(session)))
        session.prefill([5])
        yield session


def run_mutations(folder: Path, name: str, n: int) -> None:
    """In a process of its own: load what loads, go on with it, expect nothing but ZipCacheError."""
    model = tiny(folder / f"{name}.gguf", name, head_dim=32, n_layers=2 if name == "llama" else 7)
    path = folder / f"{name}.zcs"
    files = []
    for session in fuzz_sessions(model):
        session.save(path)
        files.append(path.read_bytes())
    loaded = damaged = 0
    for seed in range(n):
        print(f"seed {seed}", flush=True)
        path.write_bytes(mutate(files[seed % len(files)], random.Random(seed)))
        try:
            session = model.load_session(path)
        except FileError:
            damaged += 1
            continue
        loaded += 1
        try:
            session.decode(1)
            session.decode(2)
            session.fork().truncate(max(least_kept(session), 40))
            for token in range(24):  # a compression
                session.decode(token)
            session.prefill([3] * 30)
        except ZipCacheError:
            pass
    print(f"loaded {loaded}, refused {damaged}")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_thousand_damaged_files(name: str, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from test_session_file import run_mutations as r; "
    if sys.platform == "linux":  # no count in a file may cost memory that the file does not fill
        code += "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    code += "r(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
    command = [sys.executable, "-c", code, str(tmp_path), name, "500"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parent, check=False)
    assert done.returncode == 0, f"{done.stdout[-60:]} {done.stderr[-2000:]}"
    loaded, refused = (int(word.split()[1]) for word in done.stdout.splitlines()[-1].split(", "))
    assert loaded + refused == 500 and refused > 250 and loaded > 20
