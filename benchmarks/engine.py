"""The engine beside transformers' `generate`, on this CPU, the same random weights of a 0.5B shape.

    make bench, or: .venv-parity/bin/python -m benchmarks.engine [--quick] [--only throughput,latency,…]

throughput  Requests of mixed lengths (`jobs`), all there from the start. Transformers takes them in static batches, in
            order of arrival, each padded on the left to its longest prompt and run to its longest reply; also sorted by
            the length of their replies, which nobody knows beforehand: its best case. Only tokens that a request asked
            for count. Nothing ends a reply early on either side, and prompts share no beginnings.
latency     The same kind of requests, arriving by a Poisson process at 70 % of the rate at which the engine, saturated,
            finished them; the static side takes whoever waits, and a token is there when its step is done.
samples     16 samples of one question about 25 s of sound, together, beside one request after another with nothing kept
            from one to the next.
context     Seconds of a decode step after so many tokens, at batch 1. Ours finds the prompt's pages in its cache,
            transformers is given a cache of random keys and values.
batch1      Decode at batch 1 after 128 tokens, for each type of weights.

Repetitions of the sides take turns; figures are medians, and compilation is counted apart. Memory is the peak of
RssAnon over what it was before, which is to say without the weights; ours holds its whole pool of pages all the time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import itertools
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.convert import anonymous
from benchmarks.pair import SHAPE, byte_tokenizer, median_seconds, models
from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams, TextDelta
from stepaudio_jax.text import Audio, Conversation, Tokenizer, human

PARTS = ("throughput", "latency", "samples", "context", "batch1")
LOAD = 0.7
SAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything; `--quick` only asks whether it runs at all.

    Attributes:
      prompt, reply: (least, median, most) tokens of the mixed requests.
      per_batch: of these, so many times the batch, and `fewest` at least.
      arrivals: of the latency part.
      written: tokens of a reply where all are alike.
    """

    layers: int = SHAPE["num_hidden_layers"]
    batches: tuple[int, ...] = (1, 8, 32)
    prompt: tuple[int, int, int] = (16, 96, 512)
    reply: tuple[int, int, int] = (8, 64, 256)
    per_batch: int = 2
    fewest: int = 8
    arrivals: int = 96
    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    sound_seconds: float = 25.0
    written: int = 64
    repeat: int = 3


QUICK = Sizes(2, (4,), (8, 12, 16), (2, 4, 8), 2, 4, 6, (64, 128), 1.0, 6, 1)


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt, and how many tokens are to follow it."""

    prompt: tuple[int, ...]
    reply: int


def jobs(count: int, sizes: Sizes, seed: int = 0) -> list[Job]:
    """Lengths are log-normal (sigma 0.9), cut to their limits; prompts are random bytes."""
    rng = np.random.default_rng(seed)

    def lengths(least: int, median: int, most: int) -> np.ndarray:
        return np.clip(np.exp(rng.normal(np.log(median), 0.9, count)), least, most).astype(int)

    sizes_of = zip(lengths(*sizes.prompt), lengths(*sizes.reply), strict=True)
    return [Job(tuple(rng.integers(0, 128, prompt).tolist()), int(reply)) for prompt, reply in sizes_of]


def request(job: Job, name: str) -> Request:
    sampling = SamplingParams(temperature=0.0, max_new_tokens=job.reply)
    return Request(token_ids=job.prompt, sampling=sampling, id=name)


def serve(engine: Engine, work: Sequence[Job]) -> list[tuple[int, ...]]:
    """The replies of the engine to all of it."""
    events = engine.generate(request(job, str(i)) for i, job in enumerate(work))
    done = {e.request_id: e.completion.token_ids for e in events if isinstance(e, Finished)}
    replies = [done[str(i)] for i in range(len(work))]
    assert all(len(reply) == job.reply for reply, job in zip(replies, work, strict=True)), "an end token was written"
    return replies


class Clock(transformers.StoppingCriteria):
    """Notes when each step of a `generate` was done."""

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def one_batch(model: Any, work: Sequence[Job]) -> tuple[torch.Tensor, list[float]]:
    """What transformers writes to these, one static batch, and when each step was done."""
    width, new = max(len(job.prompt) for job in work), max(job.reply for job in work)
    ids = torch.zeros((len(work), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, job in enumerate(work):
        ids[line, width - len(job.prompt) :] = torch.tensor(job.prompt)
        mask[line, width - len(job.prompt) :] = 1
    clock = Clock()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
    return out[:, width:], clock.times


def static(model: Any, work: Sequence[Job], batch: int) -> list[tuple[int, ...]]:
    """The replies of transformers to all of it, so many at a time in the given order."""
    replies = []
    for first in range(0, len(work), batch):
        some = work[first : first + batch]
        written, _ = one_batch(model, some)
        replies += [tuple(line[: job.reply].tolist()) for line, job in zip(written, some, strict=True)]
    return replies


class Peak:
    """The most that this process held, RssAnon in GB, while the block ran."""

    def __enter__(self):
        self.before = self.most = anonymous(os.getpid())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(0.02):
            self.most = max(self.most, anonymous(os.getpid()))

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    @property
    def above(self) -> float:
        return self.most - self.before


def pool_size(engine: Engine) -> float:
    return engine.memory.pages.nbytes / 1e9


class Bench:
    """The two models, and engines of ours by their options: one is kept until another is asked for."""

    def __init__(self, sizes: Sizes, console: Console):
        self.sizes, self.console = sizes, console
        self.tokenizer: Tokenizer = byte_tokenizer()
        self.ours, self.theirs = models(sizes.layers)
        self._engine: Engine | None = None
        self._options: EngineOptions | None = None

    def engine(self, **options: Any) -> Engine:
        wanted = EngineOptions(**options)
        if self._engine is None or wanted != self._options:
            self._engine = None
            gc.collect()
            self._engine, self._options = self.another(**options), wanted
        return self._engine

    def another(self, **options: Any) -> Engine:
        return Engine(self.ours, self.tokenizer, EngineOptions(**options))

    def mixed_engine(self, batch: int) -> Engine:
        longest = self.sizes.prompt[-1] + self.sizes.reply[-1]
        return self.engine(max_rows=batch, max_length=longest + 1, share_prefixes=False)

    def table(self, title: str, *columns: str) -> Table:
        table = Table(title=title)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        return table


def warm(engine: Engine, work: Sequence[Job], sizes: Sizes) -> float:
    """Seconds of compiling everything, or only what this work needs; next to nothing where that was done."""
    start = time.perf_counter()
    serve(engine, work) if sizes is QUICK else engine.warm_up()
    return time.perf_counter() - start


def throughput(bench: Bench) -> None:
    """Useful tokens a second of all requests together."""
    sizes = bench.sizes
    table = bench.table(
        "throughput: useful tokens/s", "batch", "requests", "ours", "static batches", "ratio", "bar", "sorted", "ratio",
        "same", "memory, GB: ours", "static", "compile",
    )  # fmt: skip
    for batch in sizes.batches:
        work = jobs(max(sizes.per_batch * batch, sizes.fewest), sizes)
        order = sorted(range(len(work)), key=lambda i: work[i].reply)
        engine = bench.mixed_engine(batch)
        compiling = warm(engine, work, sizes)
        one_batch(bench.theirs, [Job((1, 2, 3), 2)] * batch)
        runs: list[Callable[[], Any]] = [
            lambda engine=engine, work=work: serve(engine, work),
            lambda work=work, batch=batch: static(bench.theirs, work, batch),
            lambda work=work, order=order, batch=batch: static(bench.theirs, [work[i] for i in order], batch),
        ]
        useful, seconds = sum(job.reply for job in work), [[] for _ in runs]
        for _ in range(sizes.repeat):
            replies, peaks = [], []
            for run, own in zip(runs, seconds, strict=True):
                with Peak() as peak:
                    start = time.perf_counter()
                    replies.append(run())
                    own.append(time.perf_counter() - start)
                bench.console.print(f"batch {batch}: {useful / own[-1]:.1f} tokens/s")  # ours, static, sorted
                peaks.append(peak.above)
        same = statistics.mean(a == b for a, b in zip(replies[0], replies[1], strict=True))
        rates = [useful / statistics.median(own) for own in seconds]
        table.add_row(
            str(batch), str(len(work)), *(f"{rate:.1f}" for rate in rates[:2]), f"{rates[0] / rates[1]:.2f}×",
            "2×" if batch == 32 else "", f"{rates[2]:.1f}", f"{rates[0] / rates[2]:.2f}×", f"{same:.2f}",
            f"{peaks[0] + pool_size(engine):.2f}", f"{peaks[1]:.2f}", f"{compiling:.0f} s",
        )  # fmt: skip
    bench.console.print(table)


def arrive(work: Sequence[Job], rate: float, seed: int = 1) -> list[float]:
    """Seconds from the start at which each request comes, `rate` of them a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(work))).tolist()


def serve_arrivals(engine: Engine, work: Sequence[Job], at: Sequence[float]) -> list[list[float]]:
    """When each token was there, in seconds from the start."""
    times: list[list[float]] = [[] for _ in work]
    coming, start = 0, time.perf_counter()
    while coming < len(work) or engine.has_work:
        while coming < len(work) and at[coming] <= time.perf_counter() - start:
            engine.add(request(work[coming], str(coming)))
            coming += 1
        if not engine.has_work:
            time.sleep(max(0.0, start + at[coming] - time.perf_counter()))
        for event in engine.step():
            if isinstance(event, TextDelta):
                times[int(event.request_id)] += [time.perf_counter() - start] * len(event.tokens)
    assert all(len(found) == job.reply for found, job in zip(times, work, strict=True)), "a token without text"
    return times


def static_arrivals(model: Any, work: Sequence[Job], at: Sequence[float], batch: int) -> list[list[float]]:
    """The same, in static batches of whoever waits."""
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < len(work):
        first = len(times)
        time.sleep(max(0.0, start + at[first] - time.perf_counter()))
        now = time.perf_counter() - start
        some = [job for job, came in zip(work[first:], at[first:], strict=True) if came <= now][:batch]
        _, done = one_batch(model, some)
        times += [[moment - start for moment in done[: job.reply]] for job in some]
    return times


def percentiles(values: Sequence[float]) -> list[str]:
    return [f"{np.percentile(values, q):.2f}" for q in (50, 99)]


def latency(bench: Bench) -> None:
    """Times to the first token and between tokens while requests keep coming."""
    sizes, batch = bench.sizes, bench.sizes.batches[-1]
    work = jobs(sizes.arrivals, sizes, seed=2)
    engine = bench.mixed_engine(batch)
    warm(engine, work, sizes)
    start = time.perf_counter()
    serve(engine, work)
    capacity = len(work) / (time.perf_counter() - start)
    at = arrive(work, LOAD * capacity)
    table = bench.table(
        f"latency: {len(work)} requests, {LOAD * capacity:.2f} a second ({LOAD:.0%} of our {capacity:.2f}), seconds",
        "", "first token p50", "p99", "between tokens p50", "p99", "whole p50", "p99", "all done after",
    )  # fmt: skip
    one_batch(bench.theirs, work[:2])
    for name, times in (
        (f"ours, at most {batch} rows", serve_arrivals(engine, work, at)),
        (f"static batches of at most {batch}", static_arrivals(bench.theirs, work, at, batch)),
    ):
        first = [found[0] - came for found, came in zip(times, at, strict=True)]
        between = [float(gap) for found in times for gap in np.diff(found)]
        whole = [found[-1] - came for found, came in zip(times, at, strict=True)]
        last = max(found[-1] for found in times)
        table.add_row(name, *percentiles(first), *percentiles(between), *percentiles(whole), f"{last:.0f}")
    bench.console.print(table)


def samples(bench: Bench) -> None:
    """Samples of one question about a sound together, beside one after another."""
    sizes = bench.sizes
    rng = np.random.default_rng(0)

    def questions() -> list[Request]:
        """Of a sound that was never heard before."""
        sound = rng.normal(0, 0.1, int(16_000 * sizes.sound_seconds)).astype(np.float32)
        prompt = Conversation((human(Audio(sound), "What is it?"),))
        params = [SamplingParams(temperature=1.0, max_new_tokens=sizes.written, seed=i) for i in range(SAMPLES)]
        return [Request(prompt, one) for one in params]

    room = 1024
    together = bench.engine(max_rows=SAMPLES, max_length=room)
    apart = bench.another(max_rows=1, max_length=room, share_prefixes=False, sounds=1)
    prompt = 0

    def run(engine: Engine, each: int) -> None:
        nonlocal prompt
        asked = questions()
        for first in range(0, SAMPLES, each):
            for event in engine.generate(asked[first : first + each]):
                if isinstance(event, Finished):
                    assert event.completion.usage.completion_tokens == sizes.written, "an end token was written"
                    prompt = event.completion.usage.prompt_tokens
            if each == 1:
                engine.prompts.sounds.clear()

    start = time.perf_counter()
    run(together, SAMPLES)
    first = time.perf_counter() - start
    run(apart, 1)
    before = together.stats()
    seconds = median_seconds(lambda: run(together, SAMPLES), lambda: run(apart, 1), repeat=sizes.repeat)
    after = together.stats()
    found = after.cached_prompt_tokens - before.cached_prompt_tokens
    asked = after.prompt_tokens - before.prompt_tokens
    table = bench.table(
        f"samples: {SAMPLES} of a prompt of {prompt} tokens, {sizes.written} written",
        "seconds", "together", "one by one", "ratio", "bar", "of the prompts found in the cache", "compile",
    )  # fmt: skip
    table.add_row(
        "", *(f"{one:.2f}" for one in seconds), f"{seconds[1] / seconds[0]:.2f}×", "5×", f"{found / asked:.3f}",
        f"{max(first - seconds[0], 0):.0f} s",
    )  # fmt: skip
    bench.console.print(table)


def context(bench: Bench) -> None:
    """A decode step after contexts of several lengths."""
    sizes, new = bench.sizes, min(bench.sizes.written, 16)
    longest = sizes.contexts[-1]
    room = longest + new + 2
    pages = -(-room // 16) + 64
    engine = bench.engine(max_rows=1, max_length=room, pages=pages, page_size=16)
    ids = np.random.default_rng(3).integers(0, 128, longest).tolist()
    table = bench.table(
        "context: milliseconds of a decode step, batch 1",
        *("tokens", "ours", "transformers", "ratio", "ours, first tokens"),
    )
    start = time.perf_counter()
    serve(engine, [Job(tuple(ids), 1)])
    prefilling = time.perf_counter() - start
    for length in sizes.contexts:
        cache = random_cache(bench.theirs, length)

        def our_run(tokens: int, length=length):
            serve(engine, [Job(tuple(ids[:length]), tokens)])

        def their_run(tokens: int, length=length, cache=cache):
            if written := cache.get_seq_length() - length:
                cache.crop(-written)
            some = torch.tensor([[*ids[:length], 1]])
            with torch.inference_mode():
                bench.theirs.generate(
                    some, attention_mask=torch.ones_like(some), past_key_values=cache, max_new_tokens=tokens,
                    do_sample=False, pad_token_id=0,
                )  # fmt: skip

        our_run(1), our_run(new + 1), their_run(2)
        runs = [lambda f=f, n=n: f(n) for f, n in itertools.product((our_run, their_run), (1, new + 1))]
        ours_first, ours, theirs_first, theirs = median_seconds(*runs, repeat=sizes.repeat)
        steps = (ours - ours_first) / new, (theirs - theirs_first) / new
        table.add_row(
            f"{length:,}",
            *(f"{1e3 * step:.1f}" for step in steps),
            f"{steps[1] / steps[0]:.2f}×",
            f"{ours_first:.2f} s",
        )
    bench.console.print(table, f"the first prefill of {longest:,} tokens, compilation included: {prefilling:.0f} s")


def random_cache(model: Any, length: int) -> transformers.DynamicCache:
    cache, config = transformers.DynamicCache(), model.config
    shape = 1, config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


def weight_types() -> Iterator[str]:
    """What `EngineOptions.weights` may be, where there is such a thing."""
    if any(field.name == "weights" for field in dataclasses.fields(EngineOptions)):
        yield "int8"


def batch1(bench: Bench) -> None:
    """Decode steps of a single row, for each type of weights."""
    sizes = bench.sizes
    job = Job(tuple(np.random.default_rng(4).integers(0, 128, 128).tolist()), sizes.written)
    engines = {"float32": bench.another(max_rows=1, max_length=1024, share_prefixes=False)}
    for kind in weight_types():
        engines[kind] = bench.another(max_rows=1, max_length=1024, share_prefixes=False, weights=kind)
    peers = {"float32": bench.theirs, "bfloat16": copy.deepcopy(bench.theirs).to(torch.bfloat16)}
    runs: dict[str, Callable[[int], Any]] = {}
    for kind, engine in engines.items():
        runs[f"ours, {kind}"] = lambda n, engine=engine: serve(engine, [dataclasses.replace(job, reply=n)])
    for kind, model in peers.items():
        runs[f"transformers, {kind}"] = lambda n, model=model: static(model, [dataclasses.replace(job, reply=n)], 1)
    for run in runs.values():
        run(2), run(job.reply)
    both = [lambda run=run, n=n: run(n) for run in runs.values() for n in (1, job.reply)]
    seconds = median_seconds(*both, repeat=sizes.repeat)
    steps = {name: (seconds[2 * i + 1] - seconds[2 * i]) / (job.reply - 1) for i, name in enumerate(runs)}
    best = min(steps[f"transformers, {kind}"] for kind in peers)
    table = bench.table(
        "batch1: decode after 128 tokens", "", "tokens/s", "of transformers' float32", "of its best", "first token, s"
    )
    for i, (name, step) in enumerate(steps.items()):
        beside = steps["transformers, float32"] / step, best / step
        table.add_row(name, f"{1 / step:.1f}", *(f"{ratio:.2f}×" for ratio in beside), f"{seconds[2 * i]:.2f}")
    bench.console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers and few requests: does it run at all")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--batches", help="of the throughput part, with commas between")
    parser.add_argument("--repeat", type=int)
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    if args.batches:
        sizes = dataclasses.replace(sizes, batches=tuple(map(int, args.batches.split(","))))
    if args.repeat:
        sizes = dataclasses.replace(sizes, repeat=args.repeat)
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    console = Console(width=118)
    bench = Bench(sizes, console)
    weights = sum(parameter.nbytes for parameter in bench.theirs.parameters()) / 1e9
    console.print(
        f"{sizes.layers} layers of a 0.5B shape, {weights:.2f} GB of weights in float32; jax {jax.__version__}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    )
    for name, part in zip(PARTS, (throughput, latency, samples, context, batch1), strict=True):
        if name in wanted:
            part(bench)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    console.print(f"peak of the whole process, both sides' weights in it: {peak:.1f} GB")


if __name__ == "__main__":
    main()
