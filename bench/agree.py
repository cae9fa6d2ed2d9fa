"""Whether a device says what the exact CPU kernels say: their greedy replies, and how its logits differ along them.

python bench/agree.py MODEL [--device cuda] [--kv f16 zipcache auto] [--texts 4] [--prompt 600] [--reply 200]

Each text is prefilled by the portable CPU kernels (ZIPCACHE_CPU=ref) in a process of their own. The device compresses
it itself ("own"), and goes on from what they have compressed ("theirs"). Rounding decides between tokens that are
nearly as good, and which of two tokens gets more bits; so at the first token that is another one it is told how much
each side prefers its own, beside the range of its logits. `--device cpu` is what to hold a GPU's figures against: it
compares the CPU's fastest kernels. Weights in f32 or f16 keep the CPU from rounding what they meet to 8 bits.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from common import numbers_table
from zipcache_rt import KvOptions, Model, _core, cli
from zipcache_rt.report.texts import reference_ids
from zipcache_rt.selftest.reference import plain_model, portable_process

CACHES = ("own", "theirs")


Logits = NDArray[np.float32]  # [n_reply, n_vocab]: those that each token of a reply was chosen from


@dataclass(frozen=True)
class Job:
    path: Path
    threads: int
    kv: str
    prompt: list[int]
    n_reply: int
    file: Path  # where the session is saved after the prompt

    @property
    def n_ctx(self) -> int:
        return len(self.prompt) + self.n_reply


@dataclass(frozen=True)
class Agreement:
    """Of a device's logits with the exact ones, along one reply."""

    kv: str
    cache: str  # of CACHES
    text: int
    n_reply: int
    n_same: int  # tokens of the reply that are the device's best, too
    first: int | None  # the first that is not
    exact_gap: float  # logits there: by how much the exact kernels prefer their own token to the device's
    device_gap: float  # and by how much the device prefers its own
    gap: float  # the larger of the two over the range of the exact logits
    off: float  # largest difference of a logit, anywhere in the reply
    off_range: float  # the same over the range of the exact logits at its place

    def __str__(self) -> str:
        where = f"{self.kv}, cache {self.cache}, text {self.text}"
        if self.first is None:
            return f"{where}: all {self.n_reply} tokens the same"
        gaps = f"preferred by {self.device_gap:.4f}, by the exact kernels their own by {self.exact_gap:.4f}"
        return f"{where}: token {self.first} is another one, {gaps}"


def compare(kv: str, cache: str, text: int, exact: Logits, other: Logits) -> Agreement:
    said, others = exact.argmax(-1), other.argmax(-1)
    spread = exact.max(-1) - exact.min(-1)
    off = np.abs(exact - other).max(-1)
    parted = np.flatnonzero(said != others)
    first, exact_gap, device_gap, gap = None, 0.0, 0.0, 0.0
    if len(parted):
        first = int(parted[0])
        a, b = said[first], others[first]
        exact_gap, device_gap = float(exact[first, a] - exact[first, b]), float(other[first, b] - other[first, a])
        gap = max(exact_gap, device_gap) / float(spread[first])
    same = len(said) - len(parted)
    offs = float(off.max()), float((off / spread).max())
    return Agreement(kv, cache, text, len(said), same, first, exact_gap, device_gap, gap, *offs)


def exact_reply(job: Job) -> Logits:
    """Runs in the process of the portable kernels."""
    model = plain_model(job.path, job.threads)
    with model.session(n_ctx=job.n_ctx, kv=KvOptions.parse(job.kv)) as session:
        session.prefill(job.prompt)
        session.save(job.file)
        rows = [session.logits]
        while len(rows) < job.n_reply:
            session.decode(int(rows[-1].argmax()))
            rows.append(session.logits)
        return np.stack(rows)


def measure(model: Model, job: Job, text: int, exact: Logits) -> Iterator[Agreement]:
    said = exact.argmax(-1).tolist()
    own = model.session(n_ctx=job.n_ctx, kv=KvOptions.parse(job.kv))
    own.prefill(job.prompt)
    for cache, session in zip(CACHES, (own, model.load_session(job.file)), strict=True):
        with session:
            other = np.vstack([session.logits, session.score(said[:-1])])
        yield compare(job.kv, cache, text, exact, other)


def row(made: list[Agreement]) -> list[str]:
    parted = [one for one in made if one.first is not None]
    return [
        f"{len(made) - len(parted)} of {len(made)}",
        f"{sum(one.n_same for one in made) / sum(one.n_reply for one in made):.2%}",
        f"{max(one.gap for one in parted):.5f}" if parted else "-",
        f"{max(one.off_range for one in made):.5f}",
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--kv", nargs="+", default=["f16", "zipcache", "auto"], metavar="POLICY")
    cli.add_device_options(parser)
    parser.add_argument("--texts", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=600, help="tokens of each (default: %(default)s)")
    parser.add_argument("--reply", type=int, default=200, help="tokens (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there")
    args = parser.parse_args()
    if min(args.texts, args.prompt, args.reply) < 1:
        parser.error("--texts, --prompt and --reply take 1 or more")
    args.kv = list(dict.fromkeys(str(KvOptions.parse(text)) for text in args.kv))
    cli.check_folder(args.json)
    return args


def main() -> None:
    args = options()
    model = Model(args.model, device=args.device, gpu_layers=args.gpu_layers)
    ids = reference_ids(model, args.texts * args.prompt)
    console = Console(width=120)
    where = model.info.runs_on + (f" ({_core.ggml_build()['kernels']})" if model.info.device == "cpu" else "")
    console.print(f"{cli.machine()}; {where} beside the CPU's exact kernels", markup=False)
    found: list[Agreement] = []
    with tempfile.TemporaryDirectory() as folder, portable_process() as exact:
        for kv in args.kv:
            for text in range(args.texts):
                prompt = ids[text * args.prompt : (text + 1) * args.prompt]
                job = Job(args.model, model.info.threads, kv, prompt, args.reply, Path(folder) / "talk.zcs")
                for one in measure(model, job, text, exact.submit(exact_reply, job).result()):
                    found.append(one)
                    console.print(str(one), markup=False)
    numbers = ("replies the same", "tokens the same", "gap / range", "off / range")
    title = f"{args.model.name}: along {args.reply} greedy tokens after {args.prompt}"
    table = numbers_table(title, ("KV", "cache"), numbers)
    for kv in args.kv:
        for cache in CACHES:
            table.add_row(kv, cache, *row([one for one in found if (one.kv, one.cache) == (kv, cache)]))
    console.print(table)
    console.print("gap: the larger preference at a first token that is another one; off: the largest difference")
    if args.json:
        facts = {"machine": cli.machine(), "runs_on": where, "prompt": args.prompt}
        args.json.write_text(json.dumps({**facts, "rows": [asdict(one) for one in found]}, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
