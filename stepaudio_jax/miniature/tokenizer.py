"""The tiny model's tokenizer: byte-level BPE, pre-tokenised like Qwen2's, trained on the miniature's own text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stepaudio_jax.miniature.questions import KINDS, make_question
from stepaudio_jax.miniature.text_questions import make_text_question

SPECIALS = (
    "<|endoftext|>",
    "<|EOT|>",
    "<|BOT|>",
    "<audio_start>",
    "<audio_end>",
    "<audio_patch>",
    "<tts_start>",
    "<tts_end>",
    "<tts_pad>",
)
"""The release's special strings, here with ids 0 to 8. Its 6,562 speech codes `<audio_i>` are left out: the tiny
model does not speak, and they would be six times its vocabulary. `<think>` is ordinary text, as in the release."""

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split: words with their space, single digits, runs of punctuation."""

ENGLISH = """The quick brown fox jumps over the lazy dog. What can you hear in this recording? Please listen to it and
tell me what it is about. There is a man who speaks, and a woman who answers him. I think that they are in a room with
some music, but it is not very loud. Is somebody speaking? What language is it? How long does it last? Who said that?
Which of these would you say was the longest, and why? Describe the sound from the beginning to the end. Yes. No. It
could be a bird, a car, a door, water, wind, rain, or a telephone. Are they happy, sad, angry, calm or surprised?
When did it start, and where does it stop? Do not answer before you have heard all of it. One, two, three, four, five,
six, seven, eight, nine, ten. system human assistant tool_json_schemas user audio think about after again all also
always another any around ask away back because been before being below best better between big both bring called came
change children city close come country course day different does done down each early earth end enough even every
example eyes face family far father feel few find first follow food found friend gave get give good great group hand
hard has have head help here high home house idea important keep kind know large last later learn leave left letter
life light line list little live look made make many may mean might mile mother move much must name near need never new
next night number off often old once only open other our out over own page paper part people picture place plant play
point press question read really right river run same saw school sea second see seem sentence set should show side
small something sometimes song soon sound spell stand start state still stop story study such take talk their them then
these thing those thought through time together took tree turn under until upon use very voice walk want was watch way
well went were while white whole will without word work world would write year young your"""
"""Common words, so that a question in the reader's own words does not fall apart into letters."""


def build_tokenizer(vocab_size: int = 1024, *, samples: int = 4000) -> tokenizers.Tokenizer:
    """Trains the tokenizer; the same arguments give the same file.

    Args:
      samples: questions drawn for its text, their reasoning and answers included.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(samples), trainer)
    return backend


def _texts(samples: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield from [ENGLISH] * 4
    for i in range(samples):
        question = make_text_question(rng) if i % 10 == 0 else make_question(rng, KINDS[i % len(KINDS)], sound=False)
        for turn in question.conversation.turns:
            think = "" if turn.think is None else f"<think>\n{turn.think}\n</think>\n"
            yield f"{turn.role}\n{think}{turn.text}"
