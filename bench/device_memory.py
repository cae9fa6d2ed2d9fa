"""What one session takes of a GPU's memory beside what was planned for it, in a process of its own.

Argument: zipcache_rt.report.worker.Spec as a JSON object. Prints Taken as one. The device's free memory is asked for by
a thread, as often as the device answers: what was there for less time than the longest gap may not have been seen. What
other processes take meanwhile counts, too.
"""

import json
import sys
import threading
import time
from dataclasses import asdict, dataclass

from zipcache_rt import KvOptions, Model, _core, cli
from zipcache_rt.report.texts import reference_ids
from zipcache_rt.report.worker import Spec

PERIOD = 0.001  # seconds between two questions, at least


@dataclass(frozen=True)
class Taken:
    """Bytes, but for the last four."""

    weights: int  # as the model counts them
    loaded: int  # what loading took, with what the device keeps for itself
    planned: int  # for the session, beside the weights
    peak: int  # what it took at most
    kv: int  # the cache in the end, wherever its layers lie
    kv_bits: float
    samples: int
    longest_gap: float  # seconds between two of them
    gpu_layers: int  # as the model tells
    is_split: bool


class Lowest:
    """The least that was free while it was entered."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.least = model.free_memory()
        self.samples, self.longest_gap = 1, 0.0

    def _watch(self) -> None:
        last = time.perf_counter()
        while not self._stop.wait(PERIOD):
            self.least = min(self.least, self._model.free_memory())
            now = time.perf_counter()
            self.samples, self.longest_gap, last = self.samples + 1, max(self.longest_gap, now - last), now

    def __enter__(self) -> "Lowest":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(spec: Spec) -> Taken:
    before: int = _core.find_device(spec.device)["free"]  # with what a process pays for being on the device at all
    model = Model(spec.model, device=spec.device, gpu_layers=spec.gpu_layers, threads=spec.threads)
    ids = reference_ids(model, spec.context + spec.n_decode)
    loaded = model.free_memory()
    with Lowest(model) as lowest, model.session(n_ctx=len(ids), kv=KvOptions.parse(spec.policy)) as session:
        session.prefill(ids[: spec.context])
        for token in ids[spec.context :]:
            session.decode(token)
        kv, planned = session.kv_stats(), session.planned_bytes
    return Taken(
        weights=model.info.weights_device,
        loaded=before - loaded,
        planned=planned,
        peak=loaded - lowest.least,
        kv=kv.bytes,
        kv_bits=kv.bits,
        samples=lowest.samples,
        longest_gap=lowest.longest_gap,
        gpu_layers=model.info.gpu_layers,
        is_split=model.info.is_split,
    )


def main() -> None:
    print(json.dumps(asdict(measure(Spec(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    cli.run(main)
