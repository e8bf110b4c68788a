"""A judge of our own: a checkpoint through the engine, possibly the policy's base."""

from __future__ import annotations

from collections.abc import Sequence

from stepaudio_jax.inference import Engine, Finished, PromptError, Request, SamplingParams
from stepaudio_jax.judges.protocol import Counters, Question, Reply


class EngineJudge:
    """Hears sound, and thinks before it answers."""

    def __init__(self, engine: Engine, name: str, *, thinking: bool = True):
        self.name, self.counters = name, Counters()
        self._engine, self._thinking = engine, thinking

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        self.counters.asked += len(questions)
        replies: list[Reply | None] = [None] * len(questions)
        requests = []
        for number, question in enumerate(questions):
            request = self._request(number, question)
            try:
                self._engine.prepare(request)
            except PromptError as error:
                replies[number] = self._failed("prompt too long", str(error))
            else:
                requests.append(request)
        for event in self._engine.generate(requests):
            if isinstance(event, Finished):
                done = event.completion
                self.counters.prompt_tokens += done.usage.prompt_tokens
                self.counters.reply_tokens += len(done.token_ids)
                whole = done.finish_reason == "stop" and done.complete
                replies[int(done.request_id)] = Reply(done.answer) if whole else self._failed("cut off")
        return [reply or self._failed("no reply") for reply in replies]

    def _request(self, number: int, question: Question) -> Request:
        sampling = SamplingParams(
            temperature=question.temperature, max_new_tokens=question.max_new_tokens, seed=question.seed
        )
        return Request(question.conversation, sampling, id=str(number), thinking=self._thinking)

    def _failed(self, kind: str, why: str = "") -> Reply:
        self.counters.errors[kind] += 1
        return Reply(error=f"{kind}: {why}" if why else kind)
