"""Prompts on their way into the cache: the next pieces, the sounds in them, and the call that computes both."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from stepaudio_jax.audio import lengths, stack
from stepaudio_jax.audio.chunks import LONGEST_CUT
from stepaudio_jax.data import bucket
from stepaudio_jax.inference.options import powers
from stepaudio_jax.inference.programs import Memory, Programs
from stepaudio_jax.inference.row import Row
from stepaudio_jax.inference.sounds import ROWS, SoundCache
from stepaudio_jax.inference.types import AudioProgress

SOUND_WIDTHS = (*(seconds * lengths.SAMPLE_RATE for seconds in (1, 2, 5, 10, 15)), LONGEST_CUT)
SOUNDS_AT_ONCE = (1, 4)
SHORT_PIECE = 32
MOST_PIECES = 16


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a row, to be computed next."""

    row: Row
    start: int
    stop: int

    def chunks(self) -> Iterator[tuple[bytes, int, int, int]]:
        """(digest, first token, tokens, number) of the chunks of sound that it touches."""
        prepared = self.row.prepared
        for number, (sound, (begin, count)) in enumerate(zip(prepared.sounds, prepared.spans, strict=True)):
            if begin < self.stop and begin + count > self.start:
                yield sound, begin, count, number


class Prompts:
    """Computes prompts piece by piece. `sounds` is the cache of what has been heard.

    A call takes one long piece (of each lane), or many short ones: of several prompts, and several of one, which see
    each other through the cache. So prompts of any lengths fill a call but for a part of a short piece each.
    """

    def __init__(self, programs: Programs, tokens_at_once: int, sounds: int, table_width: int):
        """
        Args:
          tokens_at_once: of one call.
          sounds: chunks whose features are kept.
          table_width: pages of the longest row.
        """
        self.programs, self.tokens_at_once, self.table_width = programs, tokens_at_once, table_width
        self.sounds = SoundCache(sounds)
        short = min(max(SHORT_PIECE, tokens_at_once // MOST_PIECES), tokens_at_once)
        self.lengths = sorted({short, tokens_at_once})

    def rows_of(self, length: int) -> list[int]:
        """How many pieces of a length a call may have in each lane."""
        return powers(self.tokens_at_once // length)

    def next_pieces(self, running: Iterable[Row]) -> list[Piece]:
        """The next pieces of the oldest unfinished prompt, and those of others that fit beside them."""
        unfinished = [row for row in running if not row.decodes]
        if not unfinished:
            return []
        whole = unfinished[0].length - 1 - unfinished[0].computed >= self.tokens_at_once
        length = self.lengths[-1 if whole else 0]
        pieces: list[Piece] = []
        sounds: set[bytes] = set()
        room = [self.rows_of(length)[-1]] * self.programs.lanes
        for row in unfinished:
            start = row.computed
            while start < row.length - 1 and room[row.lane]:
                piece = Piece(row, start, min(row.length - 1, start + length))
                if not pieces:
                    piece = self._with_room_for_its_sounds(piece)
                within = {sound for sound, *_ in piece.chunks()}
                if len(sounds | within) > self.sounds.entries:
                    break
                sounds |= within
                room[row.lane] -= 1
                pieces.append(piece)
                start = piece.stop
        return pieces

    def _with_room_for_its_sounds(self, piece: Piece) -> Piece:
        """The piece, ended before the first sound that the cache has no room for."""
        distinct: set[bytes] = set()
        for sound, begin, *_ in piece.chunks():
            distinct.add(sound)
            if len(distinct) > self.sounds.entries:
                return piece._replace(stop=begin)
        return piece

    def compute(self, memory: Memory, pieces: list[Piece]) -> tuple[Memory, list[AudioProgress]]:
        """Puts the pieces' keys and values into their rows' pages, after encoding the sounds that have not been."""
        memory = self._listen(memory, pieces)
        events = []
        for piece in pieces:
            heard = max((number + 1 for *_, number in piece.chunks()), default=0)
            if heard > piece.row.chunks_heard:
                piece.row.chunks_heard = heard
                events.append(AudioProgress(heard, len(piece.row.prepared.chunks), piece.row.id))
        return self._prefill(memory, pieces), events

    def _listen(self, memory: Memory, pieces: list[Piece]) -> Memory:
        """Encodes sounds, several of one width together."""
        wanted = {
            sound: piece.row.prepared.chunks[number] for piece in pieces for sound, _, _, number in piece.chunks()
        }
        absent = sorted(self.sounds.missing(wanted), key=lambda sound: len(wanted[sound]))
        while absent:
            width = bucket(len(wanted[absent[0]]), SOUND_WIDTHS)
            same = list(itertools.takewhile(lambda s, w=width: bucket(len(wanted[s]), SOUND_WIDTHS) == w, absent))
            together = max(n for n in SOUNDS_AT_ONCE if n <= len(same))
            samples, sizes = stack([wanted[sound] for sound in same[:together]], (width,))
            places = np.array([self.sounds.enter(sound) for sound in same[:together]], np.int32)
            memory = self.programs.hear(memory, samples, sizes, places)
            absent = absent[together:]
        return memory

    def _prefill(self, memory: Memory, pieces: list[Piece]) -> Memory:
        lanes = self.programs.lanes
        length = bucket(max(piece.stop - piece.start for piece in pieces), self.lengths)
        by_lane = [[piece for piece in pieces if piece.row.lane == lane] for lane in range(lanes)]
        each = bucket(max(map(len, by_lane)), self.rows_of(length))
        tokens, heard, starts, counts, table = self.nothing(each, length)
        for lane, own in enumerate(by_lane):
            for line, piece in enumerate(own, lane * each):
                row, start, stop = piece
                tokens[line, : stop - start] = row.tokens(start, stop)
                starts[line], counts[line] = start, stop - start
                table[line, : len(row.pages)] = row.pages
                for sound, begin, count, _ in piece.chunks():
                    first, end = max(begin, start), min(begin + count, stop)
                    features = self.sounds.place(sound) * ROWS + np.arange(first, end) - begin
                    heard[line, first - start : end - start] = features
        return self.programs.prefill(memory, tokens, heard, starts, counts, table)

    def nothing(self, each: int, length: int) -> tuple[np.ndarray, ...]:
        """What the program takes, without any piece: tokens, heard, starts, counts, page table."""
        rows = self.programs.lanes * each
        tokens, heard = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
        starts, counts = np.zeros((2, rows), np.int32)
        return tokens, heard, starts, counts, np.zeros((rows, self.table_width), np.int32)
