"""The one prompt template: a conversation to token ids, loss mask and audio spans (MODEL.md §5).

    <|BOT|>human
    <audio_start><audio_patch>×N<audio_end>How many tones?<|EOT|><|BOT|>assistant
    <think>
    I hear: …
    </think>
    2<|EOT|>

The text after an assistant's `<think>` line, or after the empty think block, is tokenised apart from it, so that
training sees exactly the ids that generation, which is handed that line or block, will produce.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from stepaudio_jax.text.conversation import Audio, Conversation, Turn
from stepaudio_jax.text.tokenizer import Tokenizer

THINK_OPEN = "<think>\n"
THINK_CLOSE = "\n</think>\n"
TEMPLATES = ("default", "released")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as the model sees it.

    Attributes:
      token_ids: int32 [tokens].
      loss_mask: bool [tokens], the tokens that are trained on.
      spans: (start, count) of the `<audio_patch>` run of each chunk, chunks in order of the conversation.
      thinks: (start, count) of the think block of each assistant turn that is trained on: the reasoning and the line
        that closes it, which the model writes, without the line that opens it.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    spans: tuple[tuple[int, int], ...]
    thinks: tuple[tuple[int, int], ...] = ()


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    chunk_tokens: Callable[[Audio], Sequence[int]],
    *,
    generate: bool = False,
    thinking: bool = True,
    keep_think: bool = False,
    template: str = "default",
    empty_think_loss: bool = True,
) -> Rendered:
    """Renders a conversation for training, or with `generate` as a prompt.

    Args:
      chunk_tokens: audio tokens of each chunk of a clip.
      generate: open an assistant turn at the end (or continue one left open).
      thinking: with generate, let the model think; False hands it the empty think block.
      keep_think: keep the reasoning of earlier assistant turns in the history (default: strip it).
      template: "default", or "released", which like the release's own template writes no `<|EOT|>` after the
        assistant turns of the history.
      empty_think_loss: False keeps the empty think block of a reply without reasoning out of the loss; the ids are
        the same.

    In training the last assistant turn carries the loss, and with `keep_think` all of them: an earlier turn whose
    reasoning was stripped would teach the model to answer without thinking. `Turn.loss` overrides.
    """
    if template not in TEMPLATES:
        raise ValueError(f'template: expected one of {", ".join(TEMPLATES)}, found "{template}"')
    if not conversation.turns:
        raise ValueError("turns: a conversation needs at least one turn")
    out = _Writer(tokenizer)
    turns = list(conversation.turns)
    last_assistant = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    has_system = turns[0].role == "system"
    for i, turn in enumerate(turns):
        if conversation.tools is not None and i == int(has_system):
            _tools(out, conversation.tools)
        final = i == len(turns) - 1
        if turn.role != "assistant":
            _open(out, turn.role)
            _parts(out, turn, chunk_tokens, loss=bool(turn.loss))
            out.special(tokenizer.end_of_turn, bool(turn.loss))
            continue
        thought = keep_think or (i == last_assistant and (not generate or final))
        loss = turn.loss if turn.loss is not None else (i == last_assistant or keep_think)
        loss = loss and not generate
        think_loss = loss and (empty_think_loss or not is_empty_think(turn))
        _assistant(out, turn, chunk_tokens, thought=thought, loss=loss, think_loss=think_loss)
        if turn.complete and (template == "default" or (final and not generate)):
            out.special(tokenizer.end_of_turn, loss)
    if conversation.tools is not None and len(turns) == int(has_system):
        _tools(out, conversation.tools)
    if generate and turns[-1].complete:
        _open(out, "assistant", then=THINK_OPEN)
        out.cut()
        if not thinking:
            out.text(THINK_CLOSE)
    return out.rendered()


def is_empty_think(turn: Turn) -> bool:
    return not (turn.think or "").strip()


def _tools(out: _Writer, tools: str):
    _open(out, "tool_json_schemas")
    out.text(tools)
    out.special(out.tokenizer.end_of_turn, False)


def _open(out: _Writer, role: str, then: str = ""):
    out.special(out.tokenizer.begin_of_turn, False)
    out.text(f"{role}\n{then}")


def _assistant(out: _Writer, turn: Turn, chunk_tokens, *, thought: bool, loss: bool, think_loss: bool):
    if not turn.complete and turn.think is None:  # a prefix in the caller's own words, `<think>` and all
        _open(out, turn.role)
        _parts(out, turn, chunk_tokens, loss=loss)
        return
    if not thought:
        _open(out, turn.role)
    else:
        _open(out, turn.role, then=THINK_OPEN)
        out.cut()
        still_thinking = not turn.complete and not turn.parts
        out.text((turn.think or "") + ("" if still_thinking else THINK_CLOSE), think_loss)
        if loss:
            out.think_ends()
        if is_empty_think(turn):
            out.cut()  # generation without thinking is handed the block whole
    _parts(out, turn, chunk_tokens, loss=loss)


def _parts(out: _Writer, turn: Turn, chunk_tokens, *, loss: bool):
    for part in turn.parts:
        if isinstance(part, Audio):
            out.audio(chunk_tokens(part))
        else:
            out.text(part.text, loss, allow_special=part.allow_special)


class _Writer:
    """Collects ids. Neighbouring texts of one kind are tokenised together, as the whole string would be."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._mask: list[bool] = []
        self._spans: list[tuple[int, int]] = []
        self._thinks: list[tuple[int, int]] = []
        self._pending = ""
        self._pending_kind = (False, False)
        self._think_characters = 0  # of what is pending, the first ones, which stand in a think block

    def text(self, text: str, loss: bool = False, *, allow_special: bool = False):
        if self._pending_kind != (loss, allow_special):
            self.cut()
            self._pending_kind = (loss, allow_special)
        self._pending += text

    def cut(self):
        """Ends a stretch of text: what follows is tokenised apart."""
        loss, allow_special = self._pending_kind
        if self._think_characters:
            ids, starts = self.tokenizer.encode_with_starts(self._pending, allow_special=allow_special)
            self._thinks.append((len(self._ids), bisect.bisect_left(starts, self._think_characters)))
            self._extend(ids, loss)
        elif self._pending:
            self._extend(self.tokenizer.encode(self._pending, allow_special=allow_special), loss)
        self._pending, self._think_characters = "", 0

    def think_ends(self):
        """What was written since the last cut stands in a think block; what follows may share its last token."""
        self._think_characters = len(self._pending)

    def special(self, token: int, loss: bool):
        self.cut()
        self._extend([token], loss)

    def audio(self, counts: Sequence[int]):
        self.cut()
        for count in counts:
            self.special(self.tokenizer.audio_start, False)
            self._spans.append((len(self._ids), count))
            self._extend([self.tokenizer.audio_patch] * count, False)
            self.special(self.tokenizer.audio_end, False)

    def rendered(self) -> Rendered:
        self.cut()
        ids, mask = np.array(self._ids, np.int32), np.array(self._mask, bool)
        return Rendered(ids, mask, tuple(self._spans), tuple(self._thinks))

    def _extend(self, ids: Sequence[int], loss: bool):
        self._ids += ids
        self._mask += [loss] * len(ids)
