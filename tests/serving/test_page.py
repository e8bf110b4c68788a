"""The page: what a dialogue is to the model and to people, what its endpoints refuse, and a browser that uses it."""

import contextlib
import itertools
import json
import shutil

import numpy as np
import pytest

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.audio import log_mel, stack
from stepaudio_jax.inference import (
    AudioProgress,
    Engine,
    EngineOptions,
    Finished,
    Request,
    SamplingParams,
    SoundSplit,
    TextDelta,
    TokenScore,
    Usage,
    WindowFinished,
    serving_dtype,
)
from stepaudio_jax.inference.types import Completion
from stepaudio_jax.serving import Settings
from stepaudio_jax.serving.dialogue import Round, conversation, messages, transcript
from stepaudio_jax.serving.page import PATH, mount
from stepaudio_jax.serving.pictures import COLUMNS, envelope, mel_columns, picture
from stepaudio_jax.text import Audio
from tests import small
from tests.serving.fakes import FakeEngine
from tests.serving.servers import serving, wav

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = TokenScore(1, -0.5)


def finished(think="I hear a tone.", answer="One.", reason="stop"):
    usage = Usage(audio_seconds=1, audio_tokens=12, prompt_tokens=30, completion_tokens=7)
    return Finished(Completion("x", (), (), (), reason, reason, "", think, answer, True, usage))


# A dialogue


def written(*events, start=None) -> Round:
    """A round after events, one a tenth of a second."""
    done = start or Round("What is it?", Audio(small.sound(1.0), "a.wav"), "/tmp/a.wav", asked=10.0)
    for number, event in enumerate(events, 1):
        done = done.after(event, 10.0 + number / 10)
    return done


def test_a_round_grows_with_its_events():
    now = written()
    assert now.status == "hearing"
    now = written(AudioProgress(1, 3))
    assert now.status == "hearing · 1 of 3 chunks of sound"
    now = written(TextDelta("x", "think", "I ", (TOKEN,) * 2), TextDelta("x", "think", "hear", (TOKEN,) * 3))
    assert (now.think, now.answer, now.tokens, now.think_tokens) == ("I hear", "", 5, 5)
    assert now.status == "thinking · 5 tokens (5 of thinking) · 30 tokens/s · first after 0.10 s"
    now = written(TextDelta("x", "answer", "One", (TOKEN,)), start=now)
    assert now.status.startswith("answering · 6 tokens (5 of thinking)")
    now = now.after(finished(), 11.0)
    assert (now.think, now.answer, now.ended, now.tokens) == ("I hear a tone.", "One.", "stop", 7)
    assert now.status.startswith("7 tokens (5 of thinking)")


def test_windows_are_counted_and_have_no_rate():
    now = written(SoundSplit("x", ((0, 60), (30, 90))), WindowFinished("x", 1, None))
    assert now.status == "hearing · 1 of 2 windows answered"
    now = written(TextDelta("x", "answer", "a"), TextDelta("x", "answer", "b"), finished(), start=now)
    assert now.tokens_per_second is None and "tokens/s" not in now.status


def test_the_model_reads_whole_rounds_and_the_last_question():
    first = written(finished())
    rounds = (first, first.stopped(), Round("And now?"))
    roles = [(turn.role, turn.text, turn.think, len(turn.audio)) for turn in conversation(rounds).turns]
    asked, said = ("human", "What is it?", None, 1), ("assistant", "One.", "I hear a tone.", 0)
    assert roles == [asked, said, asked, said, ("human", "And now?", None, 0)]


def test_a_sound_alone_is_a_question():
    (turn,) = conversation([Round("", Audio(small.sound(1.0)))]).turns
    assert turn.text == "" and len(turn.audio) == 1


def test_thinking_unfolds_and_folds():
    now = written(TextDelta("x", "think", "I hear", (TOKEN,)))
    sound, asked, thought = messages([now])
    assert sound["content"] == {"path": "/tmp/a.wav"} and asked["content"] == "What is it?"
    assert thought["metadata"] == {"title": "Thinking", "status": "pending"} and thought["content"] == "I hear"
    *_, thought, answer = messages([written(TextDelta("x", "answer", "One", (TOKEN,)), start=now)])
    assert thought["metadata"]["status"] == "done" and answer["content"] == "One"
    assert messages([now.stopped()])[-1]["metadata"]["status"] == "done"


def test_a_transcript_has_everything():
    rounds = (written(finished()), written(finished(think="", answer="Two", reason="length")), Round("Go").stopped())
    text = transcript(rounds, "tiny")
    assert text == (
        "# A dialogue with tiny\n\n"
        "**You:** *[a.wav, 1.0 s of sound]* What is it?\n\n> I hear a tone.\n\n**tiny:** One.\n\n"
        "**You:** *[a.wav, 1.0 s of sound]* What is it?\n\n**tiny:** Two *(cut off at its length)*\n\n"
        "**You:** Go\n\n**tiny:**  *(stopped)*\n"
    )


# Pictures


def test_a_waveform_keeps_every_extreme():
    samples = small.sound(10.0)
    samples[77_777], samples[3] = 3.0, -3.0
    low, high = envelope(samples)
    assert len(low) == len(high) == COLUMNS and low.min() == -3 and high.max() == 3
    short = small.sound(0.05)
    assert np.array_equal(envelope(short)[0], short)


def test_the_features_shown_are_those_the_model_hears():
    samples = small.sound(3.0)
    rows, sizes = stack([samples])
    expected = np.asarray(log_mel(rows, sizes))[0, : mel_columns(samples).shape[0]]
    np.testing.assert_allclose(mel_columns(samples), expected, atol=1e-5)
    assert mel_columns(small.sound(61.0)).shape == (COLUMNS, 128)


@pytest.mark.parametrize("samples", [np.zeros(16_000, np.float32), small.sound(0.03), small.sound(40.0)])
def test_any_sound_has_a_picture(samples):
    wave, mel = picture(samples).axes
    assert mel.get_xlim() == pytest.approx((0, len(samples) / 16_000)) and wave.get_ylim()[0] < 0


# What its endpoints refuse


@contextlib.contextmanager
def page(engine, settings=None, examples=()):
    with serving(engine, settings, lambda app: mount(app, examples)) as running:
        running.http.follow_redirects = True
        yield running


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


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
        running.wait_for(lambda found: not found["stepaudio_requests_running"], seconds=10)
        assert engine.cancelled == engine.added
        assert running.app.state.service.taken == 0


# A browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Tab:
    """The page in a browser. Attributes: page; wrong, what its console complained about; asked, URLs it went to."""

    def __init__(self, browser, url: str):
        self.page = browser.new_page(viewport={"width": 1280, "height": 960})
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(60_000)
        self.page.goto(url)
        self.page.wait_for_selector("#ask")

    def hear(self, file):
        self.page.set_input_files("#sound input[type=file]", str(file))
        self.page.wait_for_selector("#look img")

    def ask(self, question: str):
        self.page.fill("#question textarea", question)
        self.page.click("#ask")

    def until(self, text: str, where: str = "#chat"):
        inside = "([where, text]) => document.querySelector(where).innerText.includes(text)"
        self.page.wait_for_function(inside, arg=[where, text])

    def save(self) -> str:
        with self.page.expect_download() as download:
            self.page.click("#save")
        return download.value.path().read_text()


@pytest.fixture(scope="module")
def engine() -> Engine:
    model, tokenizer = checkpoints.load("tiny", dtype=serving_dtype())
    return Engine(model, tokenizer, EngineOptions(max_rows=2, prefill_tokens=128))


@pytest.fixture(scope="module")
def scene(engine, tmp_path_factory):
    """(file, question, what the engine answers to it, the same for a second question)."""
    made = miniature.make_question(np.random.default_rng(1), "order")
    clip = made.conversation.audio[0]
    file = tmp_path_factory.mktemp("scene") / "scene.wav"
    file.write_bytes(wav(clip.samples))
    questions = (made.prompt.turns[-1].text, "How many tones do you hear?")
    rounds, answers = (), []
    for question in questions:
        asked = Round(question, None if rounds else clip)
        request = Request(conversation([*rounds, asked]), SamplingParams(temperature=0.0, max_new_tokens=300))
        (done,) = (event for event in engine.generate([request]) if isinstance(event, Finished))
        rounds = (*rounds, asked.after(done, 1.0))
        answers.append(done.completion)
    return file, questions, answers


def test_two_turns_in_a_browser(browser, engine, scene, uploads, tmp_path):
    """Upload, picture, answer, thinking apart, a second turn that knows the first, the transcript."""
    file, questions, answers = scene
    settings = Settings(sampling=SamplingParams(temperature=0.0, max_new_tokens=300))
    with page(engine, settings, [(str(file), questions[0])]) as running:
        tab = Tab(browser, running.url)
        tab.hear(file)
        for number, question in enumerate(questions):
            tab.ask(question)
            tab.page.wait_for_function(
                "(count) => document.querySelectorAll('#chat .bot.message, #chat .message.bot').length >= count"
                " && document.querySelector('#status').innerText.includes('first after')"
                " && !document.querySelector('#status').innerText.includes('ing ·')",
                arg=number + 1,
            )
            tab.until(answers[number].answer)
        tab.page.screenshot(path=tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        text = tab.save()
        for question, answer in zip(questions, answers, strict=True):
            assert question in text and answer.answer in text
            assert all(line in text for line in answer.think.splitlines())
        assert "scene.wav" in text
        tab.page.click("#again")
        tab.page.wait_for_function("() => !document.querySelector('#chat').innerText.includes('tones')")
        assert "tones" not in tab.save()
        assert not tab.wrong
        assert all(url.startswith((running.url, "data:", "blob:")) for url in tab.asked)
        tab.page.close()


def test_stop_keeps_what_was_written_and_the_dialogue_goes_on(browser, uploads):
    engine = FakeEngine(seconds=0.02)
    with page(engine, Settings(sampling=SamplingParams(max_new_tokens=500))) as running:
        tab = Tab(browser, running.url)
        tab.ask("Go on")
        tab.until("tone", "#chat")
        tab.page.click("#stop")
        tab.until("stopped", "#status")
        running.wait_for(lambda found: not found["stepaudio_requests_running"])
        assert engine.cancelled == engine.added
        text = tab.save()
        assert "(stopped)" in text and "I hear a tone" in text
        tab.ask("And then?")
        running.wait_for(lambda found: found["stepaudio_requests_running"] == 1)
        tab.page.close()
        running.wait_for(lambda found: not found["stepaudio_requests_running"], seconds=10)


def test_an_error_is_shown_and_the_question_stays(browser, uploads):
    engine = FakeEngine()
    engine.failing = 1
    with page(engine) as running:
        tab = Tab(browser, running.url)
        tab.ask("Hello there")
        tab.page.wait_for_selector("text=the engine failed")
        tab.page.wait_for_function("() => document.querySelector('#question textarea').value === 'Hello there'")
        tab.page.close()
