"""Speed and memory of one run, in a process of its own: `python -m zipcache_rt.report.worker SPEC`, SPEC in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .._core import ModelError, ZipCacheError
from ..model import Model
from ..options import KvOptions
from .texts import reference_ids

WARM_UP = 16  # tokens of a session before the measured one, so that weights are paged in


@dataclass(frozen=True)
class Spec:
    """What a run does."""

    model: str  # the file
    device: str
    threads: int
    policy: str
    context: int  # tokens prefilled
    n_decode: int  # tokens decoded after them
    gpu_layers: int | None = None  # as Model() takes it


@dataclass(frozen=True)
class Speed:
    """What it took."""

    prefill_seconds: float
    decode_seconds: float
    loaded: int  # bytes of resident memory once the model was loaded, as all below
    peak: int  # most at any time
    end: int  # after the work, its scratch freed
    kv_bytes: int  # the cache, as it says of itself: on a GPU the memory above is the host's alone
    kv_bits: float
    cpu_share: float = 1.0  # of its threads' time that the host's processors gave to the work; 1 where it was not told


def measure(spec: Spec) -> Speed:
    """Here and now: its peak is that of the process since it began."""
    model = Model(spec.model, device=spec.device, gpu_layers=spec.gpu_layers, threads=spec.threads)
    kv = KvOptions.parse(spec.policy)
    ids = reference_ids(model, spec.context + spec.n_decode)
    with model.session(n_ctx=WARM_UP + 2, kv=kv) as session:
        session.prefill(ids[:WARM_UP])
        session.decode(ids[0])
    loaded = resident_bytes()
    began, worked = time.perf_counter(), time.process_time()
    with model.session(n_ctx=len(ids), kv=kv) as session:
        session.prefill(ids[: spec.context])
        for token in ids[spec.context :]:
            session.decode(token)
        elapsed, worked = time.perf_counter() - began, time.process_time() - worked
        stats, cache = session.stats, session.kv_stats()
        return Speed(
            prefill_seconds=stats.prefill_seconds,
            decode_seconds=stats.decode_seconds,
            loaded=loaded,
            peak=peak_bytes(),
            end=resident_bytes(),
            kv_bytes=cache.bytes,
            kv_bits=cache.bits,
            cpu_share=worked / (elapsed * model.info.threads),
        )


def in_fresh_process(spec: Spec) -> Speed:
    """measure() in a new process. Raises ModelError with what it said when it fails."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(spec))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ModelError(f"the process that measured {spec.policy} ended with {done.returncode}: {said}") from None
    if "error" in answer:
        raise ModelError(answer["error"])
    return Speed(**answer)


def peak_bytes() -> int:
    """Most resident memory of this process since it began."""
    if peak := _status("VmHWM"):  # ru_maxrss would begin at the parent's peak on Linux
        return peak
    import resource  # not everywhere

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    return _status("VmRSS")


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def main() -> None:
    try:
        answer = asdict(measure(Spec(**json.loads(sys.argv[1]))))
    except ZipCacheError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
