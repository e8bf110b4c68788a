"""The small world the tiny model lives in: scenes of sound, questions with true answers, and their scoring."""

from stepaudio_jax.miniature.captions import Captioned, make_captioned
from stepaudio_jax.miniature.dialogues import MANNERS, Care, Dialogue, make_dialogue, make_reply
from stepaudio_jax.miniature.export import export_dataset
from stepaudio_jax.miniature.judging import Facts, by_preference, by_rubric, facts_of
from stepaudio_jax.miniature.questions import KINDS, Question, make_question, silenced
from stepaudio_jax.miniature.scenes import Event, Scene, arrange, random_event, render
from stepaudio_jax.miniature.scoring import EventScore, follows, is_correct, parse_events, score_events
from stepaudio_jax.miniature.text_questions import TEXT_KINDS, make_text_question
from stepaudio_jax.miniature.tokenizer import build_tokenizer

__all__ = [
    "KINDS",
    "MANNERS",
    "TEXT_KINDS",
    "Captioned",
    "Care",
    "Dialogue",
    "Event",
    "EventScore",
    "Facts",
    "Question",
    "Scene",
    "arrange",
    "build_tokenizer",
    "by_preference",
    "by_rubric",
    "export_dataset",
    "facts_of",
    "follows",
    "is_correct",
    "make_captioned",
    "make_dialogue",
    "make_question",
    "make_reply",
    "make_text_question",
    "parse_events",
    "random_event",
    "render",
    "score_events",
    "silenced",
]
