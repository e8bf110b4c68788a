"""`stepaudio serve`: a checkpoint behind OpenAI's protocol."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FLAGS: dict[str, tuple[type, str, str]] = {
    "max_rows": (int, "N", "requests that are written at a time"),
    "max_length": (int, "TOKENS", "of a prompt and its reply (default: the model's positions)"),
    "memory": (float, "GIB", "for keys and values (default: what is free)"),
    "pages": (int, "N", "of keys and values, in place of --memory"),
    "page_size": (int, "TOKENS", "of a page"),
    "prefill_tokens": (int, "N", "tokens of prompts in one call"),
    "burst": (int, "STEPS", "most decode steps between two looks of the host"),
    "sounds": (int, "CHUNKS", "of sound whose features are kept"),
    "max_waiting": (int, "N", "replies that may wait for a row"),
    "weights": (str, "int8", "keep the decoder's matrices as integers"),
    "kv_cache": (str, "int8", "keep keys and values as integers"),
}
"""Fields of EngineOptions, for those who want another than its default."""

def define(parser: argparse.ArgumentParser) -> None:
    from stepaudio_jax.serving.settings import Settings

    default = Settings()
    add = parser.add_argument
    add("--checkpoint", default="tiny", help="a checkpoint folder, or tiny (the default)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    add("--model-name", action="append", default=[], metavar="NAME", help="what clients call it; may be repeated")
    add("--reasoning", choices=("apart", "inline"), default=default.reasoning,
        help="thinking in reasoning_content, or in content as it was written")  # fmt: skip
    add("--api-key", action="append", default=[], metavar="KEY", help="asked of every request; may be repeated")
    add("--api-key-file", metavar="FILE", help="keys, one a line: unlike --api-key not seen in the list of processes")
    add("--insecure", action="store_true", help="listen beyond this machine without asking for a key")
    add("--allow-files", metavar="FOLDER", help="requests may name sound files in it")
    add("--max-body-mb", type=float, default=default.max_body_bytes / 2**20, help="of a request (default %(default)g)")
    add("--max-audio-seconds", type=float, help="sound of a request (default: what the model has positions for)")
    add("--max-split-seconds", type=float, default=default.max_split_seconds,
        help="sound of a request that asks to have it split (default %(default)g)")  # fmt: skip
    add("--long-audio", choices=("refuse", "split"), default="refuse",
        help="of sound that does not fit, where a request does not say: refuse it (the default), or hear it in windows")
    add("--window-seconds", type=float, help="most seconds of a window; by default what fits")
    add("--overlap-seconds", type=float, help="of neighbouring windows (default 30)")
    add("--merge", choices=("ask", "join"), help="ask for one answer (the default), or join those of the windows")
    add("--yarn-factor", type=float, metavar="FACTOR",
        help="so many times the positions, by YaRN, no part of the release")  # fmt: skip
    add("--mesh", metavar="SIZES", help="how devices share the work, such as data=2,tensor=4: rows over data, heads "
        "over tensor (default: one CPU; of accelerators all, over tensor as far as the heads go)")  # fmt: skip
    add("--max-choices", type=int, default=default.max_choices, help="replies to a request (default %(default)s)")
    add("--max-requests", type=int, default=default.max_requests,
        help="taken in at a time, those that wait included; others get 429 (default %(default)s)")  # fmt: skip
    add("--request-seconds", type=float, default=default.request_seconds, help="for a request (default %(default)g)")
    add("--drain-seconds", type=float, default=default.drain_seconds,
        help="for what runs to end in after SIGTERM or ctrl-C (default %(default)g)")  # fmt: skip
    add("--transcribe", default=default.transcribe, metavar="TEXT", help="what transcriptions ask the model for")
    add("--web", action="store_true", help="a page to talk to the model, at /web")
    add("--access-log", action="store_true", help="a line for every request")
    add("--no-warm-up", action="store_true", help="compile on first use: the first requests wait")
    for name, (kind, unit, text) in FLAGS.items():
        add(f"--{name.replace('_', '-')}", type=kind, metavar=unit, help=text)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from stepaudio_jax.serving.server import bind, is_loopback

    if args.web:
        _check_web()
    keys = [*args.api_key, *(_read_keys(args.api_key_file) if args.api_key_file else ())]
    if "" in keys:
        raise ValueError("--api-key: expected text, found an empty one")
    if not (is_loopback(args.host) or keys or args.insecure):
        raise ValueError(
            f"--host {args.host}: anyone who can reach it could use it; expected --api-key, --api-key-file, or "
            "--insecure if that is meant"
        )
    _long_audio(args)  # before anything that takes minutes
    _mesh(args.mesh)
    if args.allow_files and not os.path.isdir(args.allow_files):
        raise ValueError(f"--allow-files {args.allow_files}: no such folder")
    with bind(args.host, args.port) as bound:  # before anything that takes minutes
        return _serve(args, tuple(keys), bound)


def _check_web():
    for name in ("gradio", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--web: {name} is not installed: pip install 'stepaudio-jax[serve,web]' brings it")


def _serve(args: argparse.Namespace, keys: tuple[str, ...], bound: Any) -> int:
    from stepaudio_jax.serving.app import create_app
    from stepaudio_jax.serving.server import run as run_server

    errors = Console(stderr=True, highlight=False)
    engine, sampling = _load(args)
    settings = _settings(args, keys, sampling)
    if not args.no_warm_up:
        _warm_up(engine, errors)
    app = create_app(engine, settings)
    host, port = bound.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    greeting = _greeting(url, settings)
    options = {"drain_seconds": args.drain_seconds, "access_log": args.access_log}
    with contextlib.ExitStack() as opened:
        if args.web:
            opened.enter_context(_page(app, scenes=args.checkpoint == "tiny"))
            greeting += f"\nTalk to it: {url}/web"
        run_server(app, bound, ready=lambda: print(greeting, flush=True), **options)
    return 0


@contextlib.contextmanager
def _page(app, *, scenes: bool) -> Iterator[None]:
    """The page, and a folder for what is uploaded to it, which nobody else on this machine can read.

    `scenes`: with a few to begin with, for the model that knows no other sound.
    """
    with tempfile.TemporaryDirectory(prefix="stepaudio-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from stepaudio_jax.serving.page import mount

        mount(app, _scenes(Path(folder)) if scenes else ())
        yield


def _scenes(folder: Path) -> list[tuple[str, str]]:
    import numpy as np
    import soundfile

    from stepaudio_jax import miniature
    from stepaudio_jax.audio import SAMPLE_RATE

    rng, made = np.random.default_rng(), []
    for number, kind in enumerate(("count", "order", "timbre"), 1):
        question = miniature.make_question(rng, kind)
        file = folder / f"scene-{number}.wav"
        soundfile.write(file, question.conversation.audio[0].samples, SAMPLE_RATE)
        made.append((str(file), question.prompt.turns[-1].text))
    return made


def _load(args: argparse.Namespace):
    """The engine, and the checkpoint's own sampling, which writes as long as it has room where it does not say."""

    from stepaudio_jax.inference import EngineOptions, SamplingParams, load_engine, sampling_defaults

    given = {name: value for name in FLAGS if (value := getattr(args, name)) is not None}
    if "memory" in given:
        given["memory"] = int(given["memory"] * 2**30)
    options, mesh = EngineOptions(**given), _mesh(args.mesh)
    engine = load_engine(args.checkpoint, options=options, yarn_factor=args.yarn_factor, mesh=mesh)
    unasked = SamplingParams(max_new_tokens=engine.max_length)
    return engine, sampling_defaults(args.checkpoint, unasked)


def _mesh(text: str | None) -> dict[str, int] | None:
    """"data=2,tensor=4" as sizes by axis."""
    if text is None:
        return None
    try:
        return {name.strip(): int(size) for name, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f'--mesh: expected sizes of axes, such as data=2,tensor=4, found "{text}"') from None


def _settings(args: argparse.Namespace, keys: tuple[str, ...], sampling):
    from stepaudio_jax.serving.settings import Settings

    same = ("reasoning", "allow_files", "max_audio_seconds", "max_split_seconds", "max_choices", "max_requests",
            "request_seconds", "drain_seconds", "transcribe")  # fmt: skip
    return dataclasses.replace(
        Settings(),
        model_names=tuple(args.model_name) or (Path(args.checkpoint).name,),
        sampling=sampling,
        api_keys=keys,
        long_audio=_long_audio(args),
        max_body_bytes=int(args.max_body_mb * 2**20),
        **{name: getattr(args, name) for name in same},
    )


def _long_audio(args: argparse.Namespace):
    from stepaudio_jax.inference import LongAudio

    how = {name: getattr(args, name) for name in ("window_seconds", "overlap_seconds", "merge")}
    return LongAudio.of(args.long_audio, **how)


def _warm_up(engine, errors: Console):
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[what]}"),
               TimeElapsedColumn())  # fmt: skip
    if not errors.is_terminal:
        errors.print("stepaudio serve: compiling, which takes minutes (--no-warm-up leaves it to the first requests)")
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("compiling", total=None, what="")
        engine.warm_up(lambda done, total, what: progress.update(task, completed=done, total=total, what=what))


def _greeting(url: str, settings) -> str:
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_keys else ""
    body = json.dumps({"model": settings.model_names[0], "messages": [{"role": "user", "content": "What is 4 + 5?"}]})
    command = f'curl {url}/v1/chat/completions -H "Content-Type: application/json"{key} -d {shlex.quote(body)}'
    return f"{settings.model_names[0]} is at {url}/v1. Try it:\n  {command}"


def _read_keys(file: str) -> list[str]:
    keys = [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{file}: expected a key a line, found none")
    return keys
