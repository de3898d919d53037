"""To how many tokens captions are padded: few lengths, for each is compiled for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daybreak_trainer.recipe.text import Text


@dataclass(frozen=True)
class Padding:
    max_tokens: int
    multiple: int | None
    """Lengths are multiples of this, and the last one `max_tokens`; None: that one alone."""

    @classmethod
    def of(cls, recipe: Text) -> Padding:
        longest = recipe.padding == "longest"
        return cls(recipe.max_tokens, recipe.padding_multiple if longest else None)

    def length(self, longest: int) -> int:
        """Tokens of a batch whose longest caption has `longest`."""
        if self.multiple is None:
            return self.max_tokens
        rounded = -(-max(longest, 1) // self.multiple) * self.multiple
        return min(rounded, self.max_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """All that can occur, the shortest first."""
        step = self.multiple or self.max_tokens
        return tuple(min(end, self.max_tokens) for end in range(step, self.max_tokens + step, step))

    def mean(self, tokens: Sequence[int], rows: int, *, by_length: bool) -> float:
        """Padded tokens of a caption, on average, where captions of these lengths come in passes of
        `rows`; `by_length`: dealt to passes in the order of their length."""
        if self.multiple is None or not tokens:
            return float(self.max_tokens)
        ordered = sorted(tokens) if by_length else list(tokens)
        passes = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
        return sum(self.length(max(part)) * len(part) for part in passes) / len(ordered)
