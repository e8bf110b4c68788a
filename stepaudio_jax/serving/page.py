"""A page to talk to the model, in the server itself: `stepaudio serve --web`, at /web.

Its questions go the way of every other request: a place, a row of the engine, the same limits, and the same end when
whoever asked goes away. Sound lies in a folder of the server's own until it is an hour old.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse
from gradio.utils import get_upload_folder
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio_jax import inference
from stepaudio_jax.audio import audio_tokens
from stepaudio_jax.inference import LongAudio, SamplingParams
from stepaudio_jax.serving.dialogue import Round, conversation, messages, transcript
from stepaudio_jax.serving.errors import ApiError, to_api_error
from stepaudio_jax.serving.pictures import picture
from stepaudio_jax.serving.sampling import SEEDS
from stepaudio_jax.serving.service import Service
from stepaudio_jax.text import Audio

PATH = "/web"
KEPT_SECONDS = 3600
"""Of sound and dialogues that nobody has touched."""

SHOW_SECONDS = 0.1
"""Between two changes of what is shown."""

LONGEST_BUDGET = 2048
"""Right end of the slider, in tokens, where there are positions for so many."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'"
)
"""The page loads nothing from elsewhere (gradio would), and no other page can put it into a frame."""

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")

SAVE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/markdown"}));
  link.download = "transcript.md";
  link.click();
  URL.revokeObjectURL(link.href);
}"""

CSS = "footer {display: none !important} #status {min-height: 1.6em; opacity: .75}"


def mount(app: FastAPI, examples: Sequence[tuple[str, str]] = ()) -> None:
    """Adds the page to a server, and a way to it from /.

    Args:
      examples: sound files and questions to begin with.
    """
    service: Service = app.state.service
    app.add_api_route("/", lambda: RedirectResponse(PATH), include_in_schema=False)
    talk = Talk(service)
    app.add_middleware(_Page, talk=talk, max_bytes=service.settings.max_body_bytes)
    keys = service.settings.api_keys
    gr.mount_gradio_app(
        app,
        build(service, talk, examples),
        PATH,
        auth=(lambda user, key: service.is_key(key)) if keys else None,
        auth_message="Any name, and a key of this server as the password.",
        footer_links=[],
        run_history=False,
        mcp_server=False,
        show_error=False,  # of exceptions that are none of the page's own
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=service.settings.max_body_bytes,
        css=CSS,
    )


def build(service: Service, talk: Talk, examples: Sequence[tuple[str, str]] = ()) -> gr.Blocks:
    """The page, its parts and what they do."""
    name = service.settings.model_names[0]
    unasked = service.settings.sampling
    longest = min(service.positions, LONGEST_BUDGET)
    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        rounds = gr.State((), time_to_live=KEPT_SECONDS)
        text = gr.Textbox(visible="hidden", elem_id="transcript")
        gr.Markdown(f"# {name}\nLet it hear something, ask about it, and read what it thinks.")
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                sound = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Sound", elem_id="sound", buttons=[]
                )
                look = gr.Plot(label="What it hears", elem_id="look", visible=False)
                think = gr.Checkbox(True, label="Think first", elem_id="think")
                budget = gr.Slider(
                    0, longest, longest, step=max(1, longest // 128), elem_id="budget", label="Think budget, tokens",
                    info="after so many it must answer; at the right end it may think as long as it likes",
                )  # fmt: skip
                with gr.Accordion("More", open=False):
                    temperature = gr.Slider(0, 2, unasked.temperature, step=0.05, label="Temperature",
                        info="0: always the likeliest token")  # fmt: skip
                    most = gr.Slider(1, service.positions, min(unasked.max_new_tokens, service.positions), step=1,
                        label="Longest reply, tokens")  # fmt: skip
                    seed = gr.Number(None, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1,
                        placeholder="another one every time")  # fmt: skip
                    split = gr.Checkbox(
                        service.settings.long_audio is not None, label="Hear sound that does not fit in windows",
                        info="and put together what was answered about each; otherwise it is refused",
                    )  # fmt: skip
            with gr.Column(scale=3, min_width=340):
                chat = gr.Chatbot(
                    label=name, height=520, elem_id="chat", feedback_options=None, buttons=["copy"],
                    placeholder="Drop a recording on the left, or use the microphone, and ask.",
                )  # fmt: skip
                status = gr.Markdown("", elem_id="status")
                words = gr.Textbox(
                    label="Question", show_label=False, elem_id="question", lines=1, max_lines=6,
                    placeholder="Ask about the sound, or go on talking about it",
                )  # fmt: skip
                with gr.Row():
                    send = gr.Button("Ask", variant="primary", elem_id="ask")
                    stop = gr.Button("Stop", elem_id="stop")
                    again = gr.Button("New dialogue", elem_id="again")
                    save = gr.Button("Save transcript", elem_id="save")
        if examples:
            given = [list(each) for each in examples]
            gr.Examples(given, [sound, words], label="To begin with", api_visibility="private")

        parallel: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
        gr.on(
            [send.click, words.submit],
            talk.ask,
            [rounds, sound, words, think, budget, temperature, most, seed, split],
            [chat, rounds, sound, words, status],
            **parallel,
        )
        stop.click(talk.stop, **parallel)
        gr.on([again.click, chat.clear], talk.forget, None, [chat, rounds, sound, words, status, look], **parallel)
        sound.change(talk.look, [sound, split], [look], **parallel)
        save.click(lambda rounds: transcript(rounds, name), [rounds], [text], **parallel).then(
            None, [text], None, js=SAVE
        )
    page.queue(api_open=False, default_concurrency_limit=None, max_size=service.settings.max_requests)
    return page


class Talk:
    """What happens when somebody asks, and when somebody goes."""

    def __init__(self, service: Service):
        self._service = service
        self._asking: dict[str | None, set[Asking]] = {}  # by session: a browser's tab

    async def look(self, file: str | None, split: bool):
        """A picture of the sound that was given."""
        if file is None:  # asked about: what it heard last stays in sight
            return gr.skip()
        try:
            clip, warnings = await self._service.in_worker(self._load, file, split)
            drawn = await self._service.in_worker(picture, clip.samples)
        except Exception as error:
            raise _told(error) from error
        for warning in warnings:
            gr.Warning(warning)
        label = f"What it hears: {clip.seconds:.1f} s, {int(audio_tokens(len(clip.samples)))} tokens"
        return gr.Plot(drawn, label=label, visible=True)

    async def ask(
        self,
        rounds: tuple[Round, ...],
        file: str | None,
        question: str,
        think: bool,
        budget: int,
        temperature: float,
        most: int,
        seed: int | None,
        split: bool,
        http: gr.Request,
    ) -> AsyncIterator[tuple]:
        """Hears, thinks and answers; gives all that changes on the page as it goes. Where that fails, everything is as
        it was before."""
        asking, session = Asking(rounds), http.session_hash
        self._asking.setdefault(session, set()).add(asking)
        try:
            sampling = self._sampling(think, budget, temperature, most, seed)
            asking.begin(self._answer(asking, file, question.strip(), think, sampling, split, f"web/{session}"))
            given = (None, "")  # taken from where it was given
            async for now in asking:
                yield messages(now), now, *given, now[-1].status
                given = (gr.skip(), gr.skip())
        except Exception as error:
            yield messages(rounds), rounds, file, question, ""
            raise _told(error) from error
        finally:
            asking.leave()
            self._asking[session].discard(asking)
            if not self._asking[session]:
                del self._asking[session]
            asking.ended.set()

    async def _answer(
        self,
        asking: Asking,
        file: str | None,
        question: str,
        think: bool,
        sampling: SamplingParams,
        split: bool,
        owner: str,
    ):
        if file is None and not question:
            raise ApiError("Drop a sound, record one, or write a question.")
        service = self._service
        service.check_text(len(question), "question")
        with service.admit():
            async with asyncio.timeout(service.settings.request_seconds):
                clip, warnings = (None, []) if file is None else await service.in_worker(self._load, file, split)
                now = Round(question, clip, file, warnings=tuple(warnings), asked=time.perf_counter())
                request = inference.Request(
                    conversation([*asking.before, now]),
                    sampling,
                    thinking=think,
                    owner=owner,
                    long_audio=(service.settings.long_audio or LongAudio()) if split else None,
                    id=f"web-{secrets.token_hex(12)}",
                )
                async with service.run([request], clip.seconds if clip else 0.0) as events:
                    asking.tell(now)
                    async for event in events:
                        now = now.after(event, time.perf_counter())
                        asking.tell(now)

    def stop(self, http: gr.Request):
        """What stands there stays, and is what the model reads in the next round."""
        for asking in self._asking.get(http.session_hash, ()):
            asking.stop()

    async def forget(self, http: gr.Request) -> tuple:
        """Everything is as on a new page."""
        for asking in tuple(self._asking.get(http.session_hash, ())):
            asking.leave()
            await asking.ended.wait()  # and so can show nothing more
        return [], (), None, "", "", gr.Plot(visible=False)

    def left(self, session: str | None):
        """Nobody reads any more."""
        for asking in self._asking.get(session, ()):
            asking.leave()

    def _load(self, file: str, split: bool) -> tuple[Audio, list[str]]:
        name, hearing = Path(file).name, self._service.hearing(split=split)
        return hearing.bytes(Path(file).read_bytes(), name), hearing.warnings

    def _sampling(self, think: bool, budget: int, temperature: float, most: int, seed: int | None) -> SamplingParams:
        unlimited = not think or budget >= min(self._service.positions, LONGEST_BUDGET)
        try:
            return dataclasses.replace(
                self._service.settings.sampling,
                temperature=float(temperature),
                max_new_tokens=int(most),
                think_budget=None if unlimited else int(budget),
                seed=secrets.randbelow(SEEDS) if seed is None else int(seed),
            )
        except ValueError as error:
            raise ApiError(str(error)) from None


def _told(error: Exception) -> gr.Error:
    """What went wrong as a message on the page."""
    late = isinstance(error, TimeoutError)
    message = "It took longer than a request may; ask for fewer tokens." if late else to_api_error(error).message
    return gr.Error(message, title="Not answered", print_exception=False)


class Asking:
    """A question that is being answered: `async for` gives the dialogue as it grows, now and then.

    Attributes:
      before: the rounds before this one.
      ended: nothing more of it will be shown.
    """

    def __init__(self, before: tuple[Round, ...]):
        self.before, self.ended = before, asyncio.Event()
        self._round: Round | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._left = False

    def begin(self, work: Coroutine[Any, Any, None]):
        """Starts what tells the round as it grows."""
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(lambda task: self._changed.set())

    def tell(self, now: Round):
        self._round = now
        self._changed.set()

    def stop(self):
        """Ends it with what there is."""
        if self._task is not None:
            self._task.cancel()

    def leave(self):
        """Ends it, and nobody wants to see it."""
        self._left = True
        self.stop()

    async def __aiter__(self) -> AsyncIterator[tuple[Round, ...]]:
        """Raises what the work raised."""
        task = self._task
        assert task is not None
        while True:
            await self._changed.wait()
            self._changed.clear()
            over, now = task.done(), self._round
            if self._left:
                return
            if over and not task.cancelled():
                task.result()
            if now is not None:
                yield (*self.before, now.stopped() if over else now)
            if over:
                return
            await asyncio.sleep(SHOW_SECONDS)


class _Page:
    """Middleware around the page. It sends POLICY along, notices when a tab that waits for an answer is closed, and
    refuses what names another file than one uploaded here: gradio itself takes any path, and fetches any URL.
    """

    def __init__(self, app: ASGIApp, talk: Talk, max_bytes: int):
        self.app, self.talk, self.max_bytes = app, talk, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http" or not scope["path"].startswith(PATH):
            return await self.app(scope, receive, send)

        async def guarded(message: Message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        request = Request(scope, receive)
        form = request.headers.get("content-type", "").startswith(FORMS)  # of uploads and of the key
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not form:
            body = b""
            async for block in request.stream():
                body += block
                if len(body) > self.max_bytes:
                    return await JSONResponse({"detail": "too much"}, 413)(scope, receive, guarded)
            if not _names_only_uploads(body):
                refusal = JSONResponse({"detail": "names a file that was not uploaded"}, 403)
                return await refusal(scope, receive, guarded)
            receive = _replay(body, receive)
        try:
            await self.app(scope, receive, guarded)
        finally:
            if scope["path"].endswith("/queue/data"):
                self.talk.left(request.query_params.get("session_hash"))


def _names_only_uploads(body: bytes) -> bool:
    """Whether every "path" in a JSON is that of a file in gradio's folder."""
    folder = Path(get_upload_folder()).resolve()

    def fine(value: Any) -> bool:
        if isinstance(value, list):
            return all(map(fine, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        inside = not isinstance(path, str) or ("://" not in path and Path(path).resolve().is_relative_to(folder))
        return inside and all(map(fine, value.values()))

    try:
        return fine(json.loads(body))
    except (ValueError, RecursionError, OSError):
        return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read once more."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(messages, None) or await receive()

    return again
