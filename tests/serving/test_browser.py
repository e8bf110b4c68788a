"""A browser that uses the page. Skips where no Chromium is installed."""

import shutil

import numpy as np
import pytest

from stepaudio_jax import checkpoints, miniature
from stepaudio_jax.inference import (
    Engine,
    EngineOptions,
    Finished,
    Request,
    SamplingParams,
    serving_dtype,
)
from stepaudio_jax.serving import Settings
from stepaudio_jax.serving.dialogue import Round, conversation
from tests.serving.fakes import FakeEngine
from tests.serving.pages import page
from tests.serving.servers import wav

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
        running.wait_for(lambda found: not found["stepaudio_requests_running"])


def test_an_error_is_shown_and_the_question_stays(browser, uploads):
    engine = FakeEngine()
    engine.failing = 1
    with page(engine) as running:
        tab = Tab(browser, running.url)
        tab.ask("Hello there")
        tab.page.wait_for_selector("text=the engine failed")
        tab.page.wait_for_function("() => document.querySelector('#question textarea').value === 'Hello there'")
        tab.page.close()
