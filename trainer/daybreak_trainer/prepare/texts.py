"""What a dataset's card says of its captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

MOST_WORDS = 1 << 16
SAMPLES = 256
_WORD = re.compile(r"\w+|[^\w\s]+")
"""As the tokenizers of `models/tokenizers.py` split."""


class CaptionSurvey:
    """Counts words, and keeps some captions, of `total` samples in their order."""

    def __init__(self, total: int) -> None:
        self._every = max(total // SAMPLES, 1)
        self._counts: Counter[str] = Counter()
        self._sample: dict[str, list[str]] = {}
        self._seen = 0

    def note(self, captions: Mapping[str, str]) -> None:
        """The captions of the next sample, by column."""
        keep = self._seen % self._every == 0 and self._seen < self._every * SAMPLES
        self._seen += 1
        for column, caption in captions.items():
            self._counts.update(_WORD.findall(caption.lower()))
            if keep:
                self._sample.setdefault(column, []).append(caption)

    @property
    def words(self) -> tuple[str, ...]:
        """Sorted; the `MOST_WORDS` most frequent, of equals the first in the alphabet."""
        ranked = sorted(self._counts, key=lambda word: (-self._counts[word], word))
        return tuple(sorted(ranked[:MOST_WORDS]))

    @property
    def word_counts(self) -> tuple[int, ...]:
        """How often each of `words` was seen."""
        return tuple(self._counts[word] for word in self.words)

    @property
    def sample(self) -> dict[str, tuple[str, ...]]:
        return {column: tuple(captions) for column, captions in self._sample.items()}
