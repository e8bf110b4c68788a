"""The page's endpoints: what they answer, what they refuse, and whoever goes away."""

import itertools
import json

import pytest

from stepaudio_jax.inference import (
    SamplingParams,
)
from stepaudio_jax.serving import Settings
from stepaudio_jax.serving.page import PATH
from tests import small
from tests.serving.fakes import FakeEngine
from tests.serving.pages import page
from tests.serving.servers import serving, wav


@pytest.fixture
def fake(uploads):
    engine = FakeEngine(seconds=0.02)
    with page(engine, Settings(sampling=SamplingParams(max_new_tokens=9))) as running:
        yield running, engine


_sessions = itertools.count()


class Visitor:
    """Talks to the page as its own JavaScript does."""

    def __init__(self, running):
        self.http, self.session = running.http, f"visitor-{next(_sessions)}"
        config = self.http.get(f"{PATH}/config").json()
        self.ids = {each["api_name"]: each["id"] for each in config["dependencies"]}

    def join(self, name: str, *data):
        body = {"data": list(data), "fn_index": self.ids[name], "session_hash": self.session, "event_data": None}
        return self.http.post(f"{PATH}/gradio_api/queue/join", json=body)

    def call(self, name: str, *data) -> dict:
        """The last of what an endpoint says."""
        joined = self.join(name, *data).json()["event_id"]
        with self.http.stream("GET", f"{PATH}/gradio_api/queue/data?session_hash={self.session}") as events:
            for line in events.iter_lines():
                said = json.loads(line[5:]) if line.startswith("data:") else {}
                if said.get("msg") == "process_completed" and said["event_id"] == joined:
                    return said
        raise AssertionError("no end")

    def ask(self, file=None, question="Hello", think=True, budget=512, temperature=0, most=9, seed=None, split=False):
        given = None if file is None else {"path": str(file), "meta": {"_type": "gradio.FileData"}}
        return self.call("ask", None, given, question, think, budget, temperature, most, seed, split)

    def upload(self, data: bytes, name="a.wav") -> str:
        answer = self.http.post(f"{PATH}/gradio_api/upload", files={"files": (name, data)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]


def error_of(said: dict) -> str:
    assert not said["success"], said
    return said["output"]["error"]


def test_the_page_is_there_and_loads_nothing_from_elsewhere(fake):
    running, _ = fake
    answer = running.http.get("/")
    assert answer.url.path.startswith(PATH) and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "content-security-policy" not in running.http.get("/health").headers
    assert running.http.get("/v1/models").status_code == 200


def test_it_answers(fake):
    running, engine = fake
    assert Visitor(running).ask()["success"]
    assert len(engine.added) == 1


def test_sound_that_was_uploaded_is_heard_and_nothing_else_is_read(fake, tmp_path):
    running, engine = fake
    visitor = Visitor(running)
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(small.sound(1.0)))
    inside = visitor.upload(wav(small.sound(1.0)))
    for number in range(2):  # gradio makes its components anew once they were changed
        assert visitor.ask(inside)["success"]
        for file in (secret, "/etc/passwd", f"file://{secret}", "../../etc/passwd", f"{inside}/../../../secret.wav"):
            for more in ({}, {"is_stream": True}, {"url": f"{running.url}{PATH}/gradio_api/file={inside}"}):
                given = {"path": str(file), "meta": {"_type": "gradio.FileData"}} | more
                assert visitor.join("ask", None, given, "", True, 9, 0, 9, None, False).status_code == 403
                assert visitor.join("look", given, False).status_code == 403
            assert running.http.get(f"{PATH}/gradio_api/file={file}").status_code in (403, 404)
        assert len(engine.added) == number + 1


def test_no_url_is_fetched(fake):
    running, engine = fake
    asked = []
    with serving(FakeEngine()) as other:
        other.app.add_api_route("/a.wav", lambda: asked.append(1))
        url = f"{other.url}/a.wav"
        given = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
        assert Visitor(running).join("ask", None, given, "", True, 9, 0, 9, None, False).status_code == 403
        running.http.get(f"{PATH}/gradio_api/proxy={url}")
    assert not asked and not engine.added


def test_bodies_that_are_too_large_or_no_json_are_refused(uploads):
    with page(FakeEngine(), Settings(max_body_bytes=10_000)) as running:
        assert Visitor(running).join("ask", None, None, "x" * 20_000).status_code == 413
        path = f"{PATH}/gradio_api/queue/join"
        elsewhere = b'{"data": [{"path": "/etc/passwd"}]}'
        kinds = ("application/json", "text/x", "")
        for body, kind in itertools.product((b"{", b"[" * 9_000, b"\xff", elsewhere), kinds):
            assert running.http.post(path, content=body, headers={"Content-Type": kind}).status_code == 403


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": "  "}, "Drop a sound"),
        ({"temperature": -1}, "minimum value 0"),
        ({"most": 0}, "minimum value 1"),
        ({"most": 513}, "maximum value 512"),
        ({"seed": -1}, "minimum value 0"),
        ({"budget": -1}, "minimum value 0"),
        ({"question": "x" * 10**6}, "1000000 characters"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(fake, asked, message):
    running, engine = fake
    assert message in error_of(Visitor(running).ask(**asked))
    assert not engine.added


def test_what_is_no_sound_is_refused_in_words(fake):
    running, _ = fake
    visitor = Visitor(running)
    file = visitor.upload(b"no sound", "a.wav")
    assert "a.wav" in error_of(visitor.ask(file))
    assert "a.wav" in error_of(visitor.call("look", {"path": file, "meta": {"_type": "gradio.FileData"}}, False))


def test_uploads_are_bounded(uploads):
    with page(FakeEngine(), Settings(max_body_bytes=10_000)) as running:
        answer = running.http.post(f"{PATH}/gradio_api/upload", files={"files": ("a.wav", bytes(20_000))})
        assert answer.status_code == 413


def test_a_full_server_says_so_and_nothing_is_lost(uploads):
    with page(FakeEngine(), Settings(max_requests=1)) as running:
        running.app.state.service.taken = 1
        assert "come again later" in error_of(Visitor(running).ask())


def test_a_failure_of_the_engine_is_told_without_its_text(fake):
    running, engine = fake
    engine.failing = 1
    said = error_of(Visitor(running).ask())
    assert "the engine failed" in said and "secret" not in said


def test_with_keys_the_page_asks_for_one(uploads):
    with page(FakeEngine(), Settings(api_keys=("right",))) as running:
        assert running.http.get(f"{PATH}/config").status_code == 401
        for key, status in (("wrong", 400), ("right", 200)):
            form = {"username": "me", "password": key}
            assert running.http.post(f"{PATH}/login", data=form).status_code == status, key
        assert Visitor(running).ask()["success"]


def test_whoever_goes_away_frees_the_row(uploads):
    engine = FakeEngine(seconds=0.01)
    with page(engine, Settings(sampling=SamplingParams(max_new_tokens=10**6))) as running:
        visitor = Visitor(running)
        visitor.join("ask", None, None, "Hello", True, 512, 0, 512, None, False)
        with running.http.stream("GET", f"{PATH}/gradio_api/queue/data?session_hash={visitor.session}") as events:
            for line in events.iter_lines():
                if "process_generating" in line:
                    running.wait_for(lambda found: found["stepaudio_requests_running"] == 1)
                    break
        running.wait_for(lambda found: not found["stepaudio_requests_running"])
        assert engine.cancelled == engine.added
        assert running.app.state.service.taken == 0
