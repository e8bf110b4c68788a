"""Records that cannot be trained on: set aside and counted, until they are too many."""

from __future__ import annotations

import collections
import logging
import threading

from stepaudio_jax.data.samples import RecordError

AT_LEAST = 100
"""Records looked at before their share of bad ones says anything."""
SHOWN = 100
"""Bad records logged one by one, each once however often it is met; further ones are only counted."""

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """A data set that cannot be trained on; the message is one line."""


class Unusable(RecordError):
    """A record that cannot be trained on, and why in a few words that others share."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class SetAside:
    """Counts records, threads together.

    Attributes: seen, records looked at; reasons, how many were set aside for what.
    """

    def __init__(self, max_share: float):
        self.max_share = max_share
        self.seen = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self._shown: set[str] = set()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return self.reasons.total()

    def good(self):
        with self._lock:
            self.seen += 1

    def bad(self, error: Unusable):
        """Raises DataError once more than the share allowed is bad."""
        with self._lock:
            self.seen += 1
            self.reasons[error.reason] += 1
            if len(self._shown) < SHOWN and str(error) not in self._shown:
                self._shown.add(str(error))
                logger.warning("set aside (%s): %s", error.reason, error)
                if len(self._shown) == SHOWN:
                    logger.warning("%d records were set aside; further ones are only counted", SHOWN)
            if self.seen >= AT_LEAST and self.total > self.max_share * self.seen:
                raise DataError(
                    f"{self.summary()}, more than max_bad_share {self.max_share:.2%}; the last: {error}. Find them "
                    "all with `stepaudio data check`, mend them or raise the share"
                )

    def summary(self) -> str:
        """One line, as "3 of 200 records set aside (2 cannot be read, 1 nothing to train on)"."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.total} of {self.seen} records set aside" + (f" ({reasons})" if reasons else "")
