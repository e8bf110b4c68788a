"""Whatever is sent, the answer is a 4xx in OpenAI's form, and the server goes on."""

import base64
import json

import numpy as np
import pytest

from stepaudio_jax.serving import Settings
from tests import small
from tests.serving.bad import BODIES, COMPLETIONS, HI, MAX_AUDIO_SECONDS, MAX_CHOICES, NOT_JSON, SOUNDS, user
from tests.serving.fakes import FakeEngine
from tests.serving.servers import CHAT, audio_part, encoded, error_of, serving, wav

LIMIT = 2 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that is allowed, beside one that is not."""
    root = tmp_path_factory.mktemp("files")
    (root / "open").mkdir()
    for name in ("secret.wav", "open/heard.wav"):
        (root / name).write_bytes(wav(small.sound(0.5)))
    (root / "open" / "words.txt").write_text("not sound")
    (root / "open" / "link.wav").symlink_to(root / "secret.wav")
    return root / "open"


@pytest.fixture(scope="module")
def server(folder):
    limits = {"max_audio_seconds": MAX_AUDIO_SECONDS, "max_choices": MAX_CHOICES, "max_body_bytes": LIMIT}
    settings = Settings(**limits, allow_files=str(folder), request_seconds=30)
    with serving(FakeEngine(), settings) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serves(server):
    yield
    assert server.ask(max_tokens=6).status_code == 200
    assert server.wait_for(lambda found: found["stepaudio_requests_running"] == 0)["stepaudio_pages_used"] == 0


RIGHT = wav(np.stack([0 * small.sound(0.5), small.sound(0.5)], 1))


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_first_channel_is_told_to_who_sent_it(server, stream):
    parts = [audio_part(encoded(data)) for data in (RIGHT, wav(small.sound(0.5)))]
    response = server.http.post(CHAT, json={"messages": user(parts), "max_tokens": 2, "stream": stream})
    lines = response.text.splitlines() if stream else [f"data: {response.text}"]
    told = [json.loads(line[6:]).get("warnings") for line in lines if line.startswith("data: {")]
    assert len(told[0]) == 1 and not any(told[1:])  # once
    assert told[0][0].startswith("messages[0].content[0].input_audio.data: the first channel is silent")


@pytest.mark.parametrize("format", ["json", "text", "verbose_json"])
def test_a_silent_first_channel_of_a_transcription(server, format):
    form = {"file": ("a.wav", RIGHT)}
    response = server.http.post("/v1/audio/transcriptions", files=form, data={"response_format": format})
    assert response.status_code == 200, response.text
    told = response.headers["X-Warning"] if format == "text" else response.json()["warnings"][0]
    assert told.startswith("file: the first channel is silent")


@pytest.mark.parametrize("options", [{"foo": 1}, {"window_second": 30}, {"foo": None, "merge": "ask"}])
def test_options_of_long_audio_that_there_are_not(server, options):
    error = error_of(server.ask(long_audio=options), 400)
    assert error["param"] == "long_audio" and "expected window_seconds, overlap_seconds, merge" in error["message"]


def post(server, body: str | bytes, kind: str = "application/json", path: str = CHAT):
    return server.http.post(path, content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize(("body", "message", "param"), BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_wrong(server, body, message, param):
    error = error_of(server.http.post(CHAT, json=body), 400)
    assert message in error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_bodies_that_are_hardly_json(server, body, path):
    error_of(post(server, body, path=path), 400)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_other_content_types(server, kind):
    error = error_of(post(server, json.dumps({"messages": HI}), kind), 415)
    assert "expected application/json" in error["message"]


def test_compressed_bodies(server):
    response = server.http.post(CHAT, json={"messages": HI}, headers={"Content-Encoding": "gzip"})
    assert "Content-Encoding" in error_of(response, 415)["message"]


WAYS = [  # a form holds the bytes themselves
    pytest.param(way, *bad, id=f"{way}-{what}")
    for way in ("input_audio", "audio_url", "transcription")
    for what, bad in SOUNDS.items()
    if way != "transcription" or "base64" not in what
]


@pytest.mark.parametrize(("way", "data", "message"), WAYS)
def test_sound_that_cannot_be_heard(server, way, data, message):
    if way == "transcription":
        response = server.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", base64.b64decode(data))})
        param = "file"
    else:
        part = audio_part(data)
        if way == "audio_url":
            part = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        response = server.http.post(CHAT, json={"messages": user([{"type": "text", "text": "What?"}, part])})
        param = f"messages[0].content[1].{way}.{'data' if way == 'input_audio' else 'url'}"
    error = error_of(response, 400)
    assert message in error["message"] and error["param"] == param and error["code"] == "invalid_audio"


def test_clips_count_together(server):
    clip = audio_part(encoded(wav(np.zeros(12 * 1000, np.float32), 1000, "PCM_U8")))
    assert server.http.post(CHAT, json={"messages": user([clip]), "max_tokens": 1}).status_code == 200
    error = error_of(server.http.post(CHAT, json={"messages": user([clip, clip])}), 400)
    assert error["param"] == "messages[0].content[1].input_audio.data" and "8 s allowed" in error["message"]


def url_part(url: str) -> list:
    return user([{"type": "audio_url", "audio_url": {"url": url}}])


@pytest.mark.parametrize("name", ["heard.wav", "./heard.wav", "FOLDER/heard.wav", "file://FOLDER/heard.wav"])
def test_files_in_the_folder_are_heard(server, folder, name):
    body = {"messages": url_part(name.replace("FOLDER", str(folder))), "max_tokens": 1}
    assert server.http.post(CHAT, json=body).status_code == 200


ELSEWHERE = [
    "../secret.wav", "link.wav", "FOLDER/../secret.wav", "file://FOLDER/../secret.wav", "file://FOLDER/%2e%2e/secret.wav",
    "/etc/passwd", "file:///etc/passwd", "/nowhere", "missing.wav", "/dev/zero", "/dev/stdin", ".", "", "a\0b.wav",
    "x" * 5000, "http://127.0.0.1/a.wav", "HTTPS://example.org/a.wav", "ftp://example.org/a", "gs://bucket/a.wav",
]  # fmt: skip


@pytest.mark.parametrize("url", ELSEWHERE)
def test_files_elsewhere_and_urls_are_refused(server, folder, url):
    url = url.replace("FOLDER", str(folder))
    error = error_of(server.http.post(CHAT, json={"messages": url_part(url)}), 400)
    assert error["code"] in ("file_not_allowed", "url_not_allowed") and error["param"].endswith("audio_url.url")


def test_what_lies_elsewhere_is_not_told(server, folder):
    """A file that exists and one that does not are refused in the same words."""
    there, not_there = (
        error_of(server.http.post(CHAT, json={"messages": url_part(name)}), 400)["message"]
        for name in ("../secret.wav", "../absent.wav")
    )
    assert there.replace("secret", "absent") == not_there
    told = error_of(server.http.post(CHAT, json={"messages": url_part("words.txt")}), 400)["message"]
    assert str(folder) not in told and "not a sound file" in told


@pytest.mark.parametrize(("body", "param"), COMPLETIONS.values(), ids=COMPLETIONS.keys())
def test_completions_that_are_wrong(server, body, param):
    assert (error_of(server.http.post("/v1/completions", json=body), 400)["param"] or "").startswith(param)


def test_forms_that_are_wrong(server):
    path, clip = "/v1/audio/transcriptions", {"file": ("a.wav", wav(small.sound(0.5)))}
    assert error_of(server.http.post(path, json={}), 415)
    assert error_of(server.http.post(path, files={"other": b"x"}), 400)
    assert error_of(server.http.post(path, data={"file": "x"}, files={"other": b"x"}), 400)["param"] == "file"
    assert error_of(server.http.post(path, files=clip | {"two": b"x"}), 400)
    for name, value in {"response_format": "srt", "temperature": "hot", "seed": "x", "model": "other"}.items():
        response = server.http.post(path, files=clip, data={name: value})
        assert error_of(response, 404 if name == "model" else 400)["param"] == name
    error_of(post(server, b"--x\r\nbroken", "multipart/form-data; boundary=x", path), 400)
    error_of(post(server, b"anything", "multipart/form-data", path), 400)


def test_an_unknown_model(server):
    error = error_of(server.ask(model="gpt-4"), 404)
    assert error["code"] == "model_not_found" and "tiny" in error["message"]
    error_of(server.http.get("/v1/models/gpt-4"), 404)


def test_unknown_paths_and_methods(server):
    error_of(server.http.get("/v1/nothing"), 404)
    error_of(server.http.get(CHAT), 405)
    found = server.metrics()
    assert found["stepaudio_requests_total other 404"] >= 1 and "/v1/nothing" not in str(found)


def test_bodies_that_are_too_large(server):
    """Refused by their stated length, and where none is stated as soon as they are too large."""
    body = b'{"messages": "' + b"x" * (50 << 20) + b'"}'
    assert error_of(post(server, body), 413)["code"] == "request_too_large"
    pieces = (body[at : at + (1 << 16)] for at in range(0, len(body), 1 << 16))  # sent in chunks
    response = server.http.post(CHAT, content=pieces, headers={"Content-Type": "application/json"})
    assert f"at most {LIMIT} bytes" in error_of(response, 413)["message"]
    form = server.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"x" * (3 << 20))})
    assert error_of(form, 413)
