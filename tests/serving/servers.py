"""A server in a thread of the test's process, on a port of its own, and what is asked of it."""

import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from stepaudio_jax.serving import Settings, create_app
from stepaudio_jax.serving.server import bind
from tests import small

CHAT = "/v1/chat/completions"


class Running:
    """Attributes: url; app; http, a client with no time limit to speak of."""

    def __init__(self, app, url: str):
        self.app, self.url = app, url
        self.http = httpx.Client(base_url=url, timeout=600)

    def metrics(self) -> dict[str, float]:
        """Samples without labels, and those of requests as "route status"."""
        found = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                labels = " ".join(sample.labels.get(name, "") for name in ("route", "status")).strip()
                found[f"{sample.name} {labels}".strip()] = sample.value
        return found

    def wait_for(self, condition: Callable[[dict[str, float]], bool], seconds: float = 600) -> dict[str, float]:
        """The metrics once they are so."""
        end = time.monotonic() + seconds
        while not condition(found := self.metrics()):
            assert time.monotonic() < end, found
            time.sleep(0.01)
        return found

    def ask(self, text: str = "Hello", **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json={"messages": [{"role": "user", "content": text}]} | fields)


@contextlib.contextmanager
def serving(
    engine: Any, settings: Settings | None = None, add: Callable[[FastAPI], None] = lambda app: None
) -> Iterator[Running]:
    """`add`: what else is put into the application."""
    app = create_app(engine, settings)
    add(app)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.005)
    running = Running(app, f"http://127.0.0.1:{bound.getsockname()[1]}")
    try:
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join(600)
        assert not thread.is_alive()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a refusal, which must have OpenAI's form and no traceback."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str) and body["error"]["message"]
    assert "Traceback" not in response.text and "stepaudio_jax/" not in response.text
    return body["error"]


def wav(samples: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> bytes:
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="WAV", subtype=subtype)
    return made.getvalue()


def sound(seconds: float = 0.5) -> str:
    """A wav in base64."""
    return encoded(wav(small.sound(seconds)))


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def audio_part(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
