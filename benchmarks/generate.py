"""Prefill and decode beside transformers' `generate`, float32 on this CPU, the same random weights of a 0.5B shape.

    make bench, or: .venv-parity/bin/python -m benchmarks.generate [--quick]

Both sides get the same token ids and write the same number of tokens, greedily. Repetitions of the two alternate, so
that a busy machine slows both alike; the ratio is of the medians. Compilation is told apart and counted nowhere else.
Time to the first token is counted as prefill; what every further token takes as decode. The floor of a decode step is
the time the machine needs to read the weights and the cache once, at the bandwidth of its own sum over a large array
(and, stricter than any real read, of its copy), measured here.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.pair import SHAPE, byte_tokenizer, median_seconds, models
from stepaudio_jax.inference import Engine, EngineOptions, Finished, Request, SamplingParams
from stepaudio_jax.text import Conversation, Tokenizer, human


def bandwidth(repeat: int = 5) -> tuple[float, float]:
    """Bytes per second this machine reads in a sum, and moves (read and written) in a copy, of 2 GiB with all cores."""
    array = torch.ones(2**29)
    other = torch.empty_like(array)
    read, copied = median_seconds(lambda: array.sum(), lambda: other.copy_(array), repeat=repeat)
    return array.nbytes / read, 2 * array.nbytes / copied


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers and short prompts: does it run at all")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    layers = 2 if args.quick else SHAPE["num_hidden_layers"]
    prompt, tokens, repeat = (64, 8, 2) if args.quick else (args.prompt, args.tokens, args.repeat)
    console = Console(width=118)

    tokenizer = byte_tokenizer()
    ours, theirs = models(layers)
    weight_bytes = sum(p.nbytes for p in theirs.parameters())
    # A prompt that is asked again is computed again: nothing of it is kept.
    options = EngineOptions(max_rows=8, burst=32, max_length=2048, share_prefixes=False)
    engine = Engine(ours, tokenizer, options)
    read, copy = bandwidth(2 if args.quick else 5)
    console.print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads; this machine sums {read / 1e9:.1f} GB/s, copies {copy / 1e9:.1f} GB/s"
    )
    table = Table(title=f"{layers} layers of a 0.5B shape, float32, prompts of {prompt} tokens, {tokens} written")
    for column in ("batch", "", "ours", "transformers", "ratio", "floor", "ours / floor", "compile"):
        table.add_column(column, justify="right" if column else "left")

    for batch in (1, 8):
        requests, ids = prompts(tokenizer, batch, prompt)
        written: dict[str, np.ndarray] = {}

        def our_run(new: int, requests=requests, written=written):
            sampling = SamplingParams(temperature=0.0, max_new_tokens=new)
            events = engine.generate(Request(r.conversation, sampling, id=r.id) for r in requests)
            done = {e.request_id: e.completion for e in events if isinstance(e, Finished)}
            written["ours"] = np.array([done[r.id].token_ids for r in requests])

        def their_run(new: int, ids=ids, written=written):
            with torch.inference_mode():
                out = theirs.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
                )
            written["theirs"] = out[:, ids.shape[1] :].numpy()

        start = time.perf_counter()
        our_run(tokens)
        compile_seconds = time.perf_counter() - start
        their_run(2)
        first = median_seconds(lambda f=our_run: f(1), lambda f=their_run: f(1), repeat=repeat)
        whole = median_seconds(lambda f=our_run: f(tokens), lambda f=their_run: f(tokens), repeat=repeat)
        same = float((written["ours"] == written["theirs"]).all(axis=1).mean())
        compile_seconds -= whole[0]

        table.add_row(
            str(batch),
            "prefill, tokens/s",
            *(f"{batch * prompt / t:.0f}" for t in first),
            f"{first[1] / first[0]:.2f}×",
            "",
            "",
            f"{compile_seconds:.0f} s",
        )
        steps = [(a - b) / (tokens - 1) for a, b in zip(whole, first, strict=True)]
        cache_bytes = 2 * 4 * batch * layers * 2 * 64 * (prompt + tokens / 2)
        floor = (weight_bytes + cache_bytes) / read
        table.add_row(
            "",
            "decode, tokens/s",
            *(f"{batch / t:.1f}" for t in steps),
            f"{steps[1] / steps[0]:.2f}×",
            f"{batch / floor:.1f}",
            f"{floor / steps[0]:.2f}",
            "",
        )
        table.add_row("", "prompts with the same tokens", f"{same:.2f}", "", "", "", "", "", end_section=True)
    console.print(table)


def prompts(tokenizer: Tokenizer, batch: int, length: int) -> tuple[list[Request], torch.Tensor]:
    """Random prompts of one length, as requests and as ids."""
    from stepaudio_jax.data import encode

    rng = np.random.default_rng(0)
    requests, ids = [], []
    frame = encode(Conversation((human(""),)), tokenizer, generate=True).num_tokens
    for _ in range(batch):
        text = "".join(rng.choice(list("abcdefghij klmnopqrstuvwxyz"), length - frame))
        requests.append(Request(Conversation((human(text),)), SamplingParams(temperature=0.0)))
        ids.append(encode(requests[-1].conversation, tokenizer, generate=True).rendered.token_ids)
    return requests, torch.from_numpy(np.stack(ids)).long()


if __name__ == "__main__":
    main()
