"""The bodies of requests: OpenAI's fields, and those that vLLM and SGLang added.

Fields that are unknown are ignored, as those servers do. Known ones that would change what is written and cannot be
served are refused, unless they hold the value that changes nothing.

platform.openai.com/docs: chat and completions. docs.vllm.ai: extra parameters. docs.sglang.ai: separate reasoning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stepaudio_jax.inference.types import MAX_TOP_LOG_PROBS
from stepaudio_jax.serving.errors import ApiError, shown

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Real = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)]

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "bad_words": ([],),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "suffix": ("",),
    "use_beam_search": (False,),
}
"""Fields that cannot be served, and the values of them that ask for nothing."""


class Body(BaseModel):
    """What all bodies share: values have the types they must have, nothing is converted."""

    model_config = ConfigDict(strict=True, extra="allow")

    @model_validator(mode="after")
    def _supported(self):
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in UNSUPPORTED and value not in UNSUPPORTED[name]:
                raise ApiError(
                    f"{name}: not supported by this server, expected none, found {shown(value)}",
                    param=name,
                    code="unsupported_parameter",
                )
        return self


class StreamOptions(Body):
    include_usage: bool | None = None


class LongAudioOptions(Body):
    """How sound that does not fit into one prompt is heard in windows, see `inference.LongAudio`."""

    window_seconds: Annotated[Real, Field(ge=1)] | None = None
    overlap_seconds: Annotated[Real, Field(ge=0)] | None = None
    merge: Literal["ask", "join"] | None = None


class Generation(Body):
    """What every request for text may say about how it is written; None leaves it to the server.

    Attributes:
      n: replies to the same prompt; their seeds follow one another.
      top_k: vLLM's −1 and 0 both keep all tokens.
      think_budget: closes the think block after so many tokens; vLLM calls it thinking_token_budget.
      priority: smaller ones start first.
      user: users of one key take turns.
      return_token_ids: adds each choice's `token_ids`.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[Real, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Real, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Real, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Real, Field(gt=0, le=100)] | None = None
    stop: str | Annotated[list[str], Field(max_length=32)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    skip_special_tokens: bool | None = None
    think_budget: Token | None = None
    thinking_token_budget: Token | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    user: str | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="after")
    def _whole(self):
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options: expected only with stream: true", param="stream_options")
        if any(
            len(text) > 1000 or not text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or [])
        ):
            raise ApiError("stop: expected strings of 1 to 1000 characters", param="stop", code="invalid_value")
        return self

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Function(Body):
    name: str
    arguments: str | None = None


class ToolCall(Body):
    function: Function


class Tool(Body):
    type: Literal["function"]
    function: dict[str, Any]


class Message(Body):
    """A turn. An assistant's reasoning is read from `reasoning_content`, from `reasoning`, which newer vLLM calls it,
    or from `<think>…</think>` in its content."""

    role: Name
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class TemplateOptions(Body):
    """vLLM's and SGLang's `chat_template_kwargs`."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(Generation):
    """POST /v1/chat/completions.

    Attributes:
      separate_reasoning: thinking in `reasoning_content` (true) or in `content`, as it was written (SGLang's name).
      include_reasoning: false leaves thinking out of the answer (vLLM's name).
      reasoning_effort: "none" has the model answer without thinking; other values change nothing.
      keep_think: keep the reasoning of earlier assistant turns in the prompt.
      long_audio: of sound that does not fit: "refuse", "split", or how to split it.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    separate_reasoning: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: TemplateOptions | None = None
    keep_think: bool | None = None
    long_audio: Literal["refuse", "split"] | LongAudioOptions | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs: expected only with logprobs: true", param="top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise ApiError(
                "continue_final_message: expected add_generation_prompt: false beside it, found true: the last message "
                "is continued, or a new one is begun",
                param="continue_final_message",
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ApiError(
                f"continue_final_message: expected an assistant message at the end, found {self.messages[-1].role}",
                param="continue_final_message",
            )
        if self.add_generation_prompt is False and not self.continue_final_message:
            raise ApiError(
                "add_generation_prompt: false leaves nothing to be written; expected continue_final_message: true "
                "beside it",
                param="add_generation_prompt",
            )
        return self

    @property
    def thinking(self) -> bool:
        asked = self.chat_template_kwargs or TemplateOptions()
        return self.reasoning_effort != "none" and asked.enable_thinking is not False and asked.thinking is not False


class CompletionRequest(Generation):
    """POST /v1/completions: texts or token ids, continued as they are. Special strings in a text are special here."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Logprobs | None = None
    echo: bool | None = None
