"""A judge behind an address that fails in every way it can: what comes of each question, and what it costs."""

import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

from stepaudio_jax.judges import EndpointJudge, EndpointOptions, JudgeError, Question, Recorded
from stepaudio_jax.judges.recorded import PORTION
from stepaudio_jax.text import Audio, Conversation, human, system

FAST = EndpointOptions(at_once=4, attempt_seconds=3.0, patience_seconds=60.0, first_wait=0.05, longest_wait=0.4)


def question(number=0, **options):
    return Question(Conversation((system("Judge."), human(f"number {number}"))), **options)


def completion(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Server:
    """Answers attempt after attempt as its plan says, in the end with what was asked."""

    def __init__(self, plan=()):
        self.plan, self.bodies, self.together, self.most, self.lock = list(plan), [], 0, 0, threading.Lock()
        self.headers = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                with outer.lock:
                    step = outer.plan.pop(0) if outer.plan else "answer"
                    outer.together += 1
                    outer.most = max(outer.most, outer.together)
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                try:
                    self.answer(step, body)
                finally:
                    with outer.lock:
                        outer.together -= 1

            def answer(self, step, body):
                status, headers, text = 200, {}, json.dumps(completion(f"about {body['messages'][-1]['content']}"))
                if isinstance(step, tuple):
                    text = json.dumps(completion(step[1]))
                elif isinstance(step, int):
                    status, text = step, '{"error": {"message": "no"}}'
                elif step == "strict":  # as OpenAI's reasoning models
                    if "max_tokens" in body:
                        why = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
                        status, text = 400, json.dumps({"error": {"message": why}})
                elif step == "busy":
                    status, headers, text = 429, {"retry-after": "0.3"}, "{}"
                elif step == "slow":
                    time.sleep(4.0)
                elif step == "garbage":
                    text = "<html>not JSON"
                elif step == "other":
                    text = '{"choices": [], "hello": 1}'
                elif step == "nothing":
                    text = json.dumps(completion(None))
                elif step == "long":
                    text = json.dumps(completion("on and on", "length"))
                elif step == "wait":
                    time.sleep(0.1)
                encoded = text.encode()
                self.send_response(status)
                for name, value in {
                    "content-type": "application/json",
                    "content-length": len(encoded),
                    **headers,
                }.items():
                    self.send_header(name, str(value))
                self.end_headers()
                half = step == "truncated"
                with contextlib.suppress(OSError):
                    self.wfile.write(encoded[: len(encoded) // 2] if half else encoded)
                if half:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    made = []

    def start(*plan):
        made.append(Server(plan))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_questions_are_answered_in_order_and_some_at_a_time(serve):
    server = serve(*["wait"] * 12)
    judge = EndpointJudge(server.url, "m", options=FAST)
    replies = judge([question(i) for i in range(12)])
    assert [reply.text for reply in replies] == [f"about number {i}" for i in range(12)]
    assert 2 <= server.most <= 4
    assert judge.counters.asked == 12 and judge.counters.prompt_tokens == 84 and judge.counters.reply_tokens == 36
    body = server.bodies[0]
    assert body["model"] == "m" and body["max_tokens"] == 1024 and body["seed"] == 0 and body["temperature"] == 0
    assert body["messages"][0] == {"role": "system", "content": "Judge."}


def test_a_model_that_takes_max_completion_tokens_is_asked_with_those(serve):
    """Found out once; from then on it is the name that is sent."""
    server = serve(*["strict"] * 3)
    judge = EndpointJudge(server.url, "m", options=FAST)
    assert [judge([question(i)])[0].text for i in range(2)] == ["about number 0", "about number 1"]
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in server.bodies]
    assert limits == [(1024, None), (None, 1024), (None, 1024)]
    assert judge.counters.retries == 0 and not judge.counters.errors


@pytest.mark.parametrize("step", [500, 503, "busy", "slow", "truncated", "garbage", "other", "nothing"])
def test_what_may_pass_is_tried_again(serve, step):
    server = serve(step, step)
    judge = EndpointJudge(server.url, "m", options=FAST)
    began = time.monotonic()
    assert judge([question()])[0].text == "about number 0"
    assert judge.counters.retries == 2 and not judge.counters.errors and len(server.bodies) == 3
    assert time.monotonic() - began >= (0.6 if step == "busy" else 0)


@pytest.mark.parametrize(
    ("step", "error"),
    [(500, "status 500"), ("busy", "status 429"), ("garbage", "not a completion"), ("nothing", "not a completion")],
)
def test_patience_ends_and_is_counted(serve, step, error):
    server = serve(*[step] * 100)
    options = EndpointOptions(patience_seconds=1.0, first_wait=0.05, longest_wait=0.2)
    judge = EndpointJudge(server.url, "m", options=options)
    began = time.monotonic()
    (reply,) = judge([question()])
    assert reply.text is None and reply.error.startswith(error) and judge.counters.errors == {error: 1}
    assert time.monotonic() - began < 60 and len(server.bodies) < 20


def test_a_server_that_is_down_for_a_while(serve):
    server = serve()
    port = server.server.server_port
    server.close()
    judge = EndpointJudge(server.url, "m", options=FAST)

    def come_back():
        time.sleep(1.0)
        back = http.server.ThreadingHTTPServer(("127.0.0.1", port), server.server.RequestHandlerClass)
        threading.Thread(target=back.serve_forever, daemon=True).start()

    threading.Thread(target=come_back).start()
    assert [r.text for r in judge([question(i) for i in range(3)])] == [f"about number {i}" for i in range(3)]
    assert judge.counters.retries >= 3


def test_a_reply_that_was_cut_off_or_a_question_refused_is_not_asked_again(serve):
    server = serve("long", 400)
    judge = EndpointJudge(server.url, "m", options=EndpointOptions(at_once=1))
    first, second, third = judge([question(i) for i in range(3)])
    assert first.error == "cut off" and second.error.startswith("refused (400)") and third.text == "about number 2"
    assert judge.counters.errors == {"cut off": 1, "refused (400)": 1} and len(server.bodies) == 3


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_the_run(serve, status):
    server = serve(*[status] * 20)
    with pytest.raises(JudgeError, match=rf"judge m at {server.url}: .*{status}"):
        EndpointJudge(server.url, "m", options=FAST)([question(i) for i in range(8)])


@pytest.mark.parametrize("budget", [{"most_requests": 3}, {"most_tokens": 30}])
def test_the_budget_is_kept(serve, budget):
    server = serve()
    judge = EndpointJudge(server.url, "m", options=EndpointOptions(at_once=1, **budget))
    replies = judge([question(i) for i in range(8)])
    assert [reply.text is not None for reply in replies] == [True] * 3 + [False] * 5
    assert len(server.bodies) == 3 and judge.counters.errors == {"budget spent": 5}


def test_retries_are_paid_from_the_budget(serve):
    server = serve(*[500] * 50)
    options = EndpointOptions(at_once=2, first_wait=0.01, most_requests=5)
    assert all(r.error == "budget spent" for r in EndpointJudge(server.url, "m", options=options)([question()] * 4))
    assert len(server.bodies) == 5


def test_sound_is_sent(serve):
    server = serve()
    clip = Audio(np.sin(np.arange(1600) / 10).astype(np.float32))
    EndpointJudge(server.url, "m", options=FAST)([Question(Conversation((human(clip, "what?"),)))])
    sound, text = server.bodies[0]["messages"][0]["content"]
    assert sound["type"] == "input_audio" and sound["input_audio"]["format"] == "wav" and text["text"] == "what?"


def test_a_run_read_back_from_its_file_is_the_same(serve, tmp_path):
    """Errors, too: what was not scored is not scored by a replay."""
    server = serve(400)
    path = tmp_path / "judged" / "replies.jsonl"
    judge = Recorded(path, EndpointJudge(server.url, "m", options=EndpointOptions(at_once=1)))
    first = judge([question(i) for i in (0, 1, 1, 2)])
    second = judge([question(i) for i in (0, 1)])
    assert first[0].error and second[0].text == "about number 0" and first[1] == first[2] == second[1]
    assert len(server.bodies) == 4 and judge.counters.asked == 6 and judge.counters.recalled == 1
    server.close()
    replay = Recorded(path, None)
    assert replay([question(i) for i in (0, 1, 1, 2)]) == first and replay([question(i) for i in (0, 1)]) == second
    assert replay([question(9)])[0].error == "not in the file"
    again = Recorded(path, EndpointJudge(server.url, "m", options=FAST))
    assert again([question(2)])[0] == first[3] and again.counters.recalled == 1


def test_a_file_that_was_cut_off_goes_on_and_one_that_is_none_is_refused(serve, tmp_path):
    server, path = serve(), tmp_path / "replies.jsonl"
    Recorded(path, EndpointJudge(server.url, "m", options=FAST))([question(0), question(1)])
    whole = path.read_text()
    path.write_text(whole[:-20])
    judge = Recorded(path, EndpointJudge(server.url, "m", options=FAST))
    assert [r.text for r in judge([question(0), question(1)])] == ["about number 0", "about number 1"]
    assert len(server.bodies) == 3 and path.read_text() == whole
    assert Recorded(path, None, name="another")([question(0)])[0].error == "not in the file"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1: expected a judge's reply, found 'hello'"):
        Recorded(path, None)
    with pytest.raises(ValueError, match="expected a file of a judge's replies, found none"):
        Recorded(tmp_path / "nowhere", None)


def test_questions_are_known_by_all_that_is_asked():
    clips = [Audio(np.full(10, value, np.float32), name) for value, name in ((0, "a"), (0, "b"), (1, "a"))]
    digests = [Question(Conversation((human(clip, "x"),))).digest for clip in clips]
    assert digests[0] == digests[1] != digests[2]
    others = {question().digest, question(1).digest, question(seed=1).digest, question(temperature=1.0).digest}
    assert len(others | {question(max_new_tokens=5).digest}) == 5


def test_what_was_answered_before_the_judge_failed_is_kept(serve, tmp_path):
    server, path = serve(), tmp_path / "replies.jsonl"
    judge = Recorded(path, EndpointJudge(server.url, "m", options=EndpointOptions(at_once=1)))
    asked = [question(i) for i in range(PORTION + 3)]
    server.plan = ["answer"] * (PORTION + 1) + [401]
    with pytest.raises(JudgeError):
        judge(asked)
    assert len(path.read_text().splitlines()) == PORTION
    judge(asked)
    assert len(path.read_text().splitlines()) == len(asked) and len(server.bodies) < 2 * PORTION
