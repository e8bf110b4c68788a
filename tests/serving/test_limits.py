"""Keys, places, time, clients that go away, failures, and the end."""

import base64
import json
import socket
import threading
import time

import httpx
import pytest

from stepaudio_jax.serving import Settings
from tests.serving.fakes import FakeEngine
from tests.serving.servers import CHAT, Running, audio_part, error_of, serving, sound

LONG = {"max_tokens": 10**6}


@pytest.fixture
def slow():
    """A server of an engine that would write for an hour."""
    engine = FakeEngine(seconds=0.005)
    with serving(engine) as running:
        yield running, engine


def idle(found: dict[str, float]) -> bool:
    return not any(found[f"stepaudio_{name}"] for name in ("requests_running", "requests_waiting", "pages_used"))


def running(number: int):
    return lambda found: found["stepaudio_requests_running"] == number


def leave(server: Running, request: httpx.Request, read: int = 0):
    """Sends a request, reads so many bytes of its answer, and hangs up once it runs."""
    data = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port)) as connection:
        connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + data)
        while read > 0:
            read -= len(connection.recv(read))
        if not read:
            server.wait_for(lambda found: found["stepaudio_requests_running"] > 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_frees_its_rows(slow, stream, n):
    server, engine = slow
    asked = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream, "n": n} | LONG
    leave(server, server.http.build_request("POST", CHAT, json=asked), read=500 * stream)
    server.wait_for(idle)
    assert len(engine.cancelled) == n
    found = server.metrics()
    assert found[f"stepaudio_requests_total {CHAT} {200 if stream else 499}"] == 1


def test_completions_and_transcriptions_free_their_rows_too(slow):
    server, engine = slow
    leave(server, server.http.build_request("POST", "/v1/completions", json={"prompt": ["a", "b"]} | LONG))
    server.wait_for(idle)
    form = {"files": {"file": ("a.wav", base64.b64decode(sound()))}, "data": {"max_tokens": "100000"}}
    leave(server, server.http.build_request("POST", "/v1/audio/transcriptions", **form))
    server.wait_for(idle)
    assert len(engine.cancelled) == 3


def test_a_client_that_goes_in_the_middle_of_its_body(slow):
    server, engine = slow
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1000\r\n\r\n{"messages": ['
        )
        time.sleep(0.05)
    server.wait_for(lambda found: found.get(f"stepaudio_requests_total {CHAT} 499") == 1)
    assert server.app.state.service.taken == 0 and engine.added == []


def test_requests_beyond_the_places_come_again_later():
    with serving(FakeEngine(seconds=0.005), Settings(max_requests=2)) as server:
        endless = {"json": body(stream=True, **LONG)}
        with server.http.stream("POST", CHAT, **endless), server.http.stream("POST", CHAT, **endless):
            server.wait_for(running(2))
            response = server.ask()
            assert error_of(response, 429)["code"] == "queue_full" and int(response.headers["Retry-After"]) >= 1
        server.wait_for(idle)
        assert server.ask(max_tokens=2).status_code == 200


def test_a_full_engine_says_429():
    with serving(FakeEngine(max_rows=1, max_waiting=1, seconds=0.005)) as server:
        with server.http.stream("POST", CHAT, json=body(stream=True, **LONG)):
            server.wait_for(running(1))
            response = server.ask(n=2)
            assert error_of(response, 429)["type"] == "rate_limit_error" and response.headers["Retry-After"]
        server.wait_for(idle)


def test_time_is_up():
    with serving(FakeEngine(seconds=0.005), Settings(request_seconds=0.2)) as server:
        assert "0.2 s" in error_of(server.ask(**LONG), 504)["message"]
        events = server.ask(stream=True, **LONG).text.split("\n\n")
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
        assert events[-2:] == ["data: [DONE]", ""]
        server.wait_for(idle)

        def slowly():
            yield b'{"messages"'
            time.sleep(0.5)
            yield b": []}"

        headers = {"Content-Type": "application/json"}
        error_of(server.http.post(CHAT, content=slowly(), headers=headers), 408)


def test_a_client_that_reads_nothing_loses_its_place():
    with serving(FakeEngine(), Settings(request_seconds=0.5)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            data = json.dumps(body(stream=True, **LONG)).encode()
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(data) + data
            )
            server.wait_for(lambda found: running(1)(found))
            server.wait_for(lambda found: idle(found) and server.app.state.service.taken == 0)


@pytest.mark.parametrize("keys", [("sesame",), ("other", "sesame")])
def test_keys(keys):
    with serving(FakeEngine(), Settings(api_keys=keys)) as server:
        assert server.http.get("/health").status_code == 200
        for wrong in (None, "sesame", "Bearer", "Bearer wrong", "Bearer sesam\u00e9".encode(), "Basic sesame"):
            headers = {} if wrong is None else {"Authorization": wrong}
            for path in ("/v1/models", "/v1/models/tiny", "/metrics"):
                error_of(server.http.get(path, headers=headers), 401)
            for path in (CHAT, "/v1/completions", "/v1/audio/transcriptions"):
                error = error_of(server.http.post(path, json=body(), headers=headers), 401)
                assert error["code"] == "invalid_api_key" and error["type"] == "authentication_error"
        headers = {"Authorization": "Bearer sesame"}
        assert server.http.get("/v1/models", headers=headers).status_code == 200
        assert server.http.post(CHAT, json=body(max_tokens=1), headers=headers).status_code == 200


def test_a_failed_step_is_an_error_and_no_more(slow):
    server, engine = slow
    answers = []
    threads = [
        threading.Thread(target=lambda stream=stream: answers.append(server.ask(stream=stream, **LONG)))
        for stream in (False, True, False, True)
    ]
    for thread in threads:
        thread.start()
    server.wait_for(running(4))
    engine.failing = 1
    for thread in threads:
        thread.join(600)
    assert len(answers) == 4
    for answer in answers:
        assert "secret" not in answer.text and "Traceback" not in answer.text
        if answer.status_code == 500:
            assert error_of(answer, 500)["code"] == "engine_error"
        else:
            assert '"code": "engine_error"' in answer.text and answer.text.endswith("data: [DONE]\n\n")
    assert server.ask(max_tokens=2).status_code == 200
    assert server.metrics()["stepaudio_engine_failures_total"] == 1


def test_a_dead_engine_is_told_by_health(slow):
    server, engine = slow
    engine.hurt, engine.failing = True, 1
    error_of(server.ask(), 500)
    assert server.http.get("/health").status_code == 503
    error_of(server.ask(), 500)


def test_an_error_nobody_foresaw_has_no_traceback(slow, monkeypatch):
    server, engine = slow
    monkeypatch.setattr(engine, "prepare", lambda request: 1 / 0)
    error = error_of(server.ask(), 500)
    assert "division" not in error["message"] and error["code"] == "internal_error"


def test_draining(slow):
    server, _ = slow
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.ask(max_tokens=60)))
    thread.start()
    server.wait_for(running(1))
    import asyncio

    runner = server.app.state.runner
    asyncio.run_coroutine_threadsafe(runner.drain(600), runner._loop)
    end = time.monotonic() + 600
    while (health := server.http.get("/health")).status_code == 200:
        assert time.monotonic() < end
    assert health.status_code == 503 and health.json() == {"status": "draining"}
    refused = server.ask()
    assert error_of(refused, 503)["code"] == "draining" and refused.headers["Retry-After"]
    thread.join(600)
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 60


def test_signs_of_life_while_sound_is_heard(slow):
    server, _ = slow
    text = server.ask([audio_part(sound())], stream=True, max_tokens=3).text  # type: ignore[arg-type]
    assert ": heard 2 of 2 chunks of sound\n\n" in text


def body(**fields) -> dict:
    return {"messages": [{"role": "user", "content": "Hi"}]} | fields
