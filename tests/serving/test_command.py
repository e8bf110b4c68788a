"""`stepaudio serve` as a process: what it prints works, and a signal ends it well."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from stepaudio_jax import checkpoints, cli
from tests import small
from tests.serving.servers import CHAT, error_of

ENDLESS = {"messages": [{"role": "user", "content": "Go on"}], "temperature": 0.0, "stream": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Random weights, but for the end tokens, whose logits are 0: no greedy reply ends of itself."""
    path, model = tmp_path_factory.mktemp("serve") / "small", small.model()
    model.decoder.lm_head.set_value(model.decoder.lm_head[...].at[:2].set(0.0))
    checkpoints.save(path, model, small.tokenizer().backend.to_str())
    return str(path)


class Served:
    """A server's process. Attributes: url; greeting, what it prints when it is ready."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None):
        command = [sys.executable, "-m", "stepaudio_jax.cli", "serve", "--port", "0", "--no-warm-up", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | (env or {}))  # fmt: skip
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline() + self.process.stdout.readline()
        found = re.search(r"http://[^/\s]+", self.greeting)
        assert found, self.process.communicate(timeout=600)
        self.url = found.group()

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        return self.process.wait(600), self.process.communicate()[1]

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()


def test_it_serves_and_a_signal_drains_it(checkpoint):
    """Requests that run when SIGTERM comes are finished; new ones, and /health, hear 503 meanwhile."""
    flags = ("--max-rows", "2", "--burst", "4", "--sounds", "8")
    with Served("--checkpoint", checkpoint, "--drain-seconds", "600", "--model-name", "ours", *flags) as served:
        assert served.greeting.startswith(f"ours is at {served.url}/v1.")
        if shutil.which("curl"):
            curl = ["sh", "-c", served.greeting.splitlines()[1]]
            done = subprocess.run(curl, capture_output=True, text=True, timeout=600, check=True)
            assert json.loads(done.stdout)["choices"][0]["finish_reason"] in ("length", "stop")  # it samples
        answers: list[str] = []

        def ask():
            answers.append(httpx.post(served.url + CHAT, json=ENDLESS | {"max_tokens": 400}, timeout=600).text)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        with httpx.Client(base_url=served.url, timeout=600) as client:  # a connection that stays
            wait(lambda: "stepaudio_requests_running 2.0" in client.get("/metrics").text)
            served.process.send_signal(signal.SIGTERM)
            wait(lambda: client.get("/health").status_code == 503)
            assert error_of(client.post(CHAT, json=ENDLESS), 503)["code"] == "draining"
        for thread in threads:
            thread.join(600)
        assert [answer.endswith("data: [DONE]\n\n") and '"error"' not in answer for answer in answers] == [True, True]
        assert served.ended() == (0, "")


def test_what_does_not_end_in_time_is_cancelled(checkpoint):
    """By ctrl-C, with a stream open that hears of it."""
    events: list[str] = []

    def ask(url: str):
        body = ENDLESS | {"n": 16, "max_tokens": 400}
        with httpx.stream("POST", url + CHAT, json=body, timeout=600) as response:
            events.extend(response.iter_lines())

    with Served("--checkpoint", checkpoint, "--drain-seconds", "0.2", "--max-rows", "1", "--burst", "1") as served:
        thread = threading.Thread(target=ask, args=[served.url])
        thread.start()
        wait(lambda: "stepaudio_requests_running 1.0" in httpx.get(f"{served.url}/metrics").text)
        served.process.send_signal(signal.SIGINT)
        thread.join(600)
        code, errors = served.ended()
    assert code == 0 and "did not end within 0.2 s" in errors and "Traceback" not in errors
    assert '"code": "draining"' in events[-4] and events[-2] == "data: [DONE]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: anyone who can reach it"),
        (["--mesh", "8"], '--mesh: expected sizes of axes, such as data=2,tensor=4, found "8"'),
        (["--merge", "join"], "merge: expected long_audio \"split\" beside it"),
        (["--allow-files", "/nowhere"], "--allow-files /nowhere: no such folder"),
        (["--host", "192.0.2.7", "--insecure"], "--host 192.0.2.7 --port 0: cannot listen there"),
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--api-key-file", "EMPTY"], "expected a key a line, found none"),
        (["--api-key", ""], "--api-key: expected text"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "empty").write_text("\n\n")
    flags = [str(tmp_path / "empty") if flag == "EMPTY" else flag for flag in flags]
    assert cli.main(["serve", "--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there (Address already in use)" in capsys.readouterr().err


def wait(condition, seconds: float = 600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_page_on_request(checkpoint, tmp_path):
    """Its files lie in a folder that only this user can read, and that goes with the server."""
    flags = ("--checkpoint", checkpoint, "--web", "--max-rows", "2", "--sounds", "8")
    with Served(*flags, env={"TMPDIR": str(tmp_path)}) as served:
        assert served.process.stdout is not None
        assert served.process.stdout.readline() == f"Talk to it: {served.url}/web\n"
        assert "gradio" in httpx.get(f"{served.url}/web/").text
        (folder,) = tmp_path.glob("stepaudio-web-*")
        assert folder.stat().st_mode & 0o077 == 0
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == (0, "")
        assert not folder.exists()


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["serve", "--web"]) == 2
    assert "pip install 'stepaudio-jax[serve,web]'" in capsys.readouterr().err
