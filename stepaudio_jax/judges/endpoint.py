"""A judge behind an OpenAI-compatible address: several questions at a time, asked again where that may help, and never
more than the budget allows."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import io
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from stepaudio_jax.judges.protocol import Counters, JudgeError, Question, Reply
from stepaudio_jax.text import Audio

HOPELESS = (401, 403, 404)
"""Statuses that say that no question will ever be answered."""


@dataclasses.dataclass(frozen=True)
class EndpointOptions:
    """
    Attributes:
      at_once: questions on the way together.
      attempt_seconds: most for one attempt. patience_seconds: after so long since it was first asked, a question is not
        tried again; with waits that double up to `longest_wait` a server may be down for a minute.
      most_requests, most_tokens: of the judge's whole life, attempts and answers' tokens together with prompts'; what
        is asked beyond has no answer. None: no bound.
    """

    at_once: int = 8
    attempt_seconds: float = 60.0
    patience_seconds: float = 180.0
    first_wait: float = 0.5
    longest_wait: float = 15.0
    most_requests: int | None = None
    most_tokens: int | None = None

    def __post_init__(self):
        for name in ("at_once", "attempt_seconds", "patience_seconds", "first_wait", "longest_wait"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"judge.{name}: expected above 0, found {value}")


class EndpointJudge:
    """Needs the extra `judge`. Sound is sent as `input_audio`, where a conversation has any."""

    def __init__(self, url: str, model: str, *, key: str = "none", options: EndpointOptions | None = None):
        """
        Args:
          url: up to and with /v1.
        """
        import openai

        self.name, self.counters, self.options = model, Counters(), options or EndpointOptions()
        self._url, self._lock, self._attempts = url, threading.Lock(), 0
        self._limit = "max_tokens"
        # Waits and attempts are this class's, which counts them.
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=self.options.attempt_seconds)

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        self.counters.asked += len(questions)
        with concurrent.futures.ThreadPoolExecutor(self.options.at_once) as pool:
            asked = [pool.submit(self._ask, question) for question in questions]
            try:
                return [each.result() for each in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, question: Question) -> Reply:
        import openai

        limit = self._limit
        body = {
            "model": self.name,
            "messages": messages(question),
            limit: question.max_new_tokens,
            "temperature": question.temperature,
            "seed": question.seed,
        }
        began, wait = time.monotonic(), self.options.first_wait
        while True:
            if not self._may_ask():
                return self._failed("budget spent")
            least = 0.0
            try:
                return self._read(self._client.chat.completions.create(**body))
            except openai.APIStatusError as error:
                status, why = error.status_code, str(error)[:300]
                if status in HOPELESS:
                    raise JudgeError(f"judge {self.name} at {self._url}: {why}") from error
                if status == 400 and limit == "max_tokens" and "max_completion_tokens" in str(error):
                    # OpenAI's reasoning models take only this name, and say so.
                    body["max_completion_tokens"] = body.pop("max_tokens")
                    self._limit = limit = "max_completion_tokens"
                    continue
                if status < 500 and status not in (408, 409, 429):
                    return self._failed(f"refused ({status})", why)
                kind, least = f"status {status}", _retry_after(error.response.headers)
            except openai.APITimeoutError:
                kind = "too slow"
            except openai.APIConnectionError:
                kind = "no connection"
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError):
                kind = "not a completion"
            wait = max(least, min(wait, self.options.longest_wait))
            if time.monotonic() + wait - began > self.options.patience_seconds:
                return self._failed(kind)
            time.sleep(wait * random.uniform(0.75, 1) if wait > least else wait)
            wait *= 2
            with self._lock:
                self.counters.retries += 1

    def _may_ask(self) -> bool:
        """Takes one attempt from the budget."""
        with self._lock:
            spent = self.counters.prompt_tokens + self.counters.reply_tokens
            requests, tokens = self.options.most_requests, self.options.most_tokens
            if (requests is not None and self._attempts >= requests) or (tokens is not None and spent >= tokens):
                return False
            self._attempts += 1
            return True

    def _read(self, completion: Any) -> Reply:
        (choice,) = completion.choices
        text, usage = choice.message.content, completion.usage
        with self._lock:
            self.counters.prompt_tokens += usage.prompt_tokens if usage else 0
            self.counters.reply_tokens += usage.completion_tokens if usage else 0
        if choice.finish_reason == "length":
            return self._failed("cut off")
        if not isinstance(text, str):
            raise TypeError("content")
        return Reply(text)

    def _failed(self, kind: str, why: str = "") -> Reply:
        with self._lock:
            self.counters.errors[kind] += 1
        return Reply(error=f"{kind}: {why}" if why else kind)


def _retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait, a minute at most."""
    try:
        return min(60.0, max(0.0, float(headers.get("retry-after", 0))))
    except ValueError:  # a date
        return 0.0


def messages(question: Question) -> list[dict[str, Any]]:
    """A conversation as the API has it."""
    made = []
    for turn in question.conversation.turns:
        role = "user" if turn.role == "human" else turn.role
        content: Any = turn.text
        if turn.audio:
            content = [_sound(part) if isinstance(part, Audio) else {"type": "text", "text": part.text}
                       for part in turn.parts]  # fmt: skip
        made.append({"role": role, "content": content})
    return made


def _sound(clip: Audio) -> dict[str, Any]:
    import soundfile

    wav = io.BytesIO()
    soundfile.write(wav, clip.samples, 16_000, format="WAV", subtype="PCM_16")
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(wav.getvalue()).decode(), "format": "wav"},
    }
