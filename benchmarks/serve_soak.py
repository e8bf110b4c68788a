"""A server under 200 clients for five minutes: does it stay right, and does it give everything back?

    .venv/bin/python -m benchmarks.serve_soak [--clients 200] [--seconds 300] [--quick]

`stepaudio serve` runs the shipped model in a process of its own. Valid requests (questions about fresh scenes, sums,
dialogues with sound in them, several replies, texts to continue; whole and streamed) are asked one by one first. Then
every client draws again and again: three in five a valid request, whose tokens must be those it had alone; one in five
the same, hung up on at a random moment; one in five something bad, which must be refused with a 4xx in OpenAI's form.
In the end nothing may run or hold a page, every place must be free, and the resident memory must be what it was after
the first fifth of the time, when every program has been compiled and every buffer had its size.

Exit code 1 where anything of that fails. Latencies are of whole requests, as the clients saw them on this machine,
which they share with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from stepaudio_jax.miniature import KINDS, make_question, make_text_question
from stepaudio_jax.text import Audio, Turn
from tests.serving import bad
from tests.serving.servers import CHAT, audio_part, encoded, wav

COMPLETIONS, TRANSCRIPTIONS = "/v1/completions", "/v1/audio/transcriptions"
MAX_BODY_MB = 2
GROWTH = 0.05
"""Of resident memory, that is not called a leak."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """A valid request."""

    path: str
    body: dict[str, Any]


@dataclasses.dataclass
class Tally:
    """What became of the requests of one kind."""

    count: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)


def valid(number: int) -> list[Ask]:
    """So many different requests, each greedy, every other one streamed."""
    asks = []
    for i in range(number):
        rng = np.random.default_rng([91, i])
        turns = (make_question(rng, KINDS[i % len(KINDS)]) if i % 4 else make_text_question(rng)).prompt.turns
        body: dict[str, Any] = {"messages": [message(turn) for turn in turns], "stream": i % 2 == 1}
        path = CHAT
        if i % 7 == 3:
            body["n"] = 2
        if i % 7 == 5:
            path, body = COMPLETIONS, {"prompt": [turns[-1].text, "I hear"], "max_tokens": 40, "stream": body["stream"]}
        asks.append(Ask(path, body | {"temperature": 0, "return_token_ids": True}))
    return asks


def message(turn: Turn) -> dict[str, Any]:
    parts = [
        audio_part(encoded(wav(part.samples, subtype="PCM_16"))) if isinstance(part, Audio)
        else {"type": "text", "text": part.text}
        for part in turn.parts
    ]  # fmt: skip
    return {"role": turn.role, "content": parts}


def hopeless() -> list[dict[str, Any]]:
    """Arguments of requests that must be refused."""
    json_type = {"Content-Type": "application/json"}
    made = [{"url": CHAT, "json": body} for body, *_ in bad.BODIES.values()]
    made += [{"url": COMPLETIONS, "json": body} for body, _ in bad.COMPLETIONS.values()]
    made += [{"url": path, "content": body, "headers": json_type}
             for body in bad.NOT_JSON.values() for path in (CHAT, COMPLETIONS)]  # fmt: skip
    made += [{"url": CHAT, "json": {"messages": bad.user([audio_part(data)])}} for data, _ in bad.SOUNDS.values()]
    made += [{"url": TRANSCRIPTIONS, "files": {"file": ("a.wav", b"no sound")}}, {"url": TRANSCRIPTIONS, "json": {}}]
    made += [{"url": CHAT, "json": {"messages": bad.HI, "model": "another"}}, {"url": "/v1/nothing", "json": {}}]
    made += [{"url": CHAT, "content": b"x" * (2 * MAX_BODY_MB << 20), "headers": json_type}]
    made += [{"url": CHAT, "json": {"messages": bad.HI}, "headers": {"Content-Type": "text/plain"}}]
    made += [{"url": CHAT, "json": {"messages": bad.user([{"type": "audio_url", "audio_url": {"url": url}}])}}
             for url in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/a.wav")]  # fmt: skip
    return made


def tokens(ask: Ask, text: str) -> list[list[int]]:
    """The tokens of each reply of an answer, whole or streamed."""
    if not ask.body.get("stream"):
        return [choice["token_ids"] for choice in json.loads(text)["choices"]]
    found: dict[int, list[int]] = defaultdict(list)
    *events, done = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if done != "[DONE]":
        raise ValueError(f"the events end in {done[:100]}")
    for event in events:
        for choice in json.loads(event)["choices"]:
            found[choice["index"]] += choice["token_ids"]
    return [found[index] for index in sorted(found)]


class Soak:
    """The clients, and what they found. Attributes: tallies, by kind of request; written, tokens of right answers."""

    def __init__(self, url: str, clients: int, seconds: float, number: int):
        self.url, self.clients, self.seconds = url, clients, seconds
        self.asks, self.hopeless = valid(number), hopeless()
        self.expected: list[list[list[int]]] = []
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.written = 0

    async def run(self) -> dict[str, dict[str, float]]:
        """The server's metrics at the start, after a fifth of the time, and at the end."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as http:
            for ask in self.asks:
                response = await http.post(ask.path, json=ask.body)
                self.expected.append(tokens(ask, response.raise_for_status().text))
            found = {"start": await metrics(http)}
            end = time.monotonic() + self.seconds
            clients = [asyncio.create_task(self.client(http, end, i)) for i in range(self.clients)]
            await asyncio.sleep(self.seconds / 5)
            found["settled"] = await metrics(http)
            await asyncio.gather(*clients)
            await asyncio.sleep(1)
            found["end"] = await metrics(http)
            health = await http.get("/health")
            if health.status_code != 200:
                self.tallies["health"].wrong.append(health.text)
        return found

    async def client(self, http: httpx.AsyncClient, end: float, number: int):
        draw = random.Random(number)
        while time.monotonic() < end:
            await draw.choices([self.right, self.hang_up, self.refused], [3, 1, 1])[0](http, draw)

    async def right(self, http: httpx.AsyncClient, draw: random.Random):
        at = draw.randrange(len(self.asks))
        ask, tally, start = self.asks[at], self.tallies["valid"], time.perf_counter()
        tally.count += 1
        try:
            response = await http.post(ask.path, json=ask.body)
            if response.status_code != 200:
                raise ValueError(f"{response.status_code} {response.text[:200]}")
            found = tokens(ask, response.text)
            if found != self.expected[at]:
                raise ValueError(f"request {at}: other tokens than alone")
        except Exception as error:
            tally.wrong.append(repr(error))
            return
        tally.seconds.append(time.perf_counter() - start)
        self.written += sum(map(len, found))

    async def hang_up(self, http: httpx.AsyncClient, draw: random.Random):
        ask, tally = draw.choice(self.asks), self.tallies["hung up on"]
        tally.count += 1
        try:
            async with asyncio.timeout(draw.expovariate(2)):
                await http.post(ask.path, json=ask.body | {"max_tokens": 2000})
        except TimeoutError:
            pass
        except Exception as error:
            tally.wrong.append(repr(error))

    async def refused(self, http: httpx.AsyncClient, draw: random.Random):
        ask, tally, start = draw.choice(self.hopeless), self.tallies["bad"], time.perf_counter()
        tally.count += 1
        try:
            response = await http.post(**ask)
            error = response.json()["error"]
            if not 400 <= response.status_code < 500 or set(error) != {"message", "type", "param", "code"}:
                raise ValueError(f"{response.status_code} {response.text[:200]}")
        except Exception as problem:
            tally.wrong.append(f"{str(ask)[:100]}: {problem!r}")
            return
        tally.seconds.append(time.perf_counter() - start)


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    families = text_string_to_metric_families((await http.get("/metrics")).text)
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def faults(soak: Soak, found: dict[str, dict[str, float]], growth: float) -> list[str]:
    """What went wrong, in words."""
    end, settled = found["end"], found["settled"]
    said = [f"{kind}: {len(tally.wrong)} of {tally.count} wrong, e.g. {tally.wrong[0]}"
            for kind, tally in soak.tallies.items() if tally.wrong]  # fmt: skip
    for name in ("requests_running", "requests_waiting", "requests_taken", "pages_used", "engine_failures_total"):
        if end[f"stepaudio_{name}"] != found["start"][f"stepaudio_{name}"]:
            said.append(f"{name}: {end[f'stepaudio_{name}']:g} in the end")
    memory = "process_resident_memory_bytes"
    if end[memory] > (1 + growth) * settled[memory]:
        said.append(f"resident memory grew from {settled[memory] / 2**20:.0f} to {end[memory] / 2**20:.0f} MiB")
    if not soak.tallies["valid"].seconds:
        said.append("no valid request was answered")
    return said


def report(soak: Soak, found: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"{soak.clients} clients, {soak.seconds:.0f} s, the shipped model on this machine's CPU")
    for column in ("", "requests", "wrong", "median", "95 %", "99 %"):
        table.add_column(column, justify="right" if column else "left")
    for kind, tally in soak.tallies.items():
        times = statistics.quantiles(tally.seconds, n=100) if len(tally.seconds) > 1 else []
        shown = [f"{times[i]:.2f} s" for i in (49, 94, 98)] if times else ["", "", ""]
        table.add_row(kind, f"{tally.count:,}", f"{len(tally.wrong):,}", *shown)
    table.add_section()
    table.add_row("tokens/s of right answers", f"{soak.written / soak.seconds:,.0f}")
    for name in ("pages_used", "pages_cached", "requests_taken"):
        table.add_row(f"{name.replace('_', ' ')}, start → end", arrow(found, f"stepaudio_{name}", 1))
    table.add_row("resident MiB, start → settled → end", arrow(found, "process_resident_memory_bytes", 2**20))
    table.add_row("open files, start → settled → end", arrow(found, "process_open_fds", 1))
    return table


def arrow(found: dict[str, dict[str, float]], name: str, unit: float) -> str:
    return " → ".join(f"{at[name] / unit:,.0f}" for at in found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 clients, 10 seconds: does it run at all")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--requests", type=int, default=48, help="different valid ones")
    args = parser.parse_args()
    clients, seconds, number = (20, 10, 12) if args.quick else (args.clients, args.seconds, args.requests)
    command = [sys.executable, "-m", "stepaudio_jax.cli", "serve", "--port", "0", "--max-body-mb", str(MAX_BODY_MB),
               "--max-choices", str(bad.MAX_CHOICES), "--max-audio-seconds", str(bad.MAX_AUDIO_SECONDS)]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = re.search(r"http://[^/\s]+", server.stdout.readline())
        if url is None:
            raise SystemExit("the server did not start")
        soak = Soak(url.group(), clients, seconds, number)
        found = asyncio.run(soak.run())
    finally:
        server.terminate()
        code = server.wait(60)
    Console(width=110).print(report(soak, found))
    # A short soak ends before memory has settled.
    said = faults(soak, found, growth=1.0 if args.quick else GROWTH)
    if code != 0:
        said.append(f"the server ended with {code}")
    print("\n".join(said) or "nothing was wrong")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
