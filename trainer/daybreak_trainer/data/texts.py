"""What a corpus knows of its captions, out of the cards of its datasets, and what of them is
missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from daybreak_trainer.data.card import DatasetCard, TextEmbeddings
from daybreak_trainer.data.corpus import Shard
from daybreak_trainer.data.embeddings import column
from daybreak_trainer.data.errors import DatasetError


def vocabulary(cards: Sequence[DatasetCard]) -> dict[str, int]:
    """Words of all captions, sorted, and how often each stands in them."""
    counts: Counter[str] = Counter()
    for card in cards:
        known = card.word_counts or (1,) * len(card.vocabulary)
        counts.update(dict(zip(card.vocabulary, known, strict=True)))
    return dict(sorted(counts.items()))


def sample(cards: Sequence[DatasetCard]) -> dict[str, tuple[str, ...]]:
    """Some captions of each column."""
    columns = {name for card in cards for name in card.caption_sample}
    return {
        name: tuple(text for card in cards for text in card.caption_sample.get(name, ()))
        for name in sorted(columns)
    }


def check(shards: Sequence[Shard], captions: Sequence[str], embeddings: bool) -> None:
    """Raises DatasetError: a shard lacks one of the columns of captions, or their embeddings."""
    for shard in shards:
        columns = shard.info.columns
        for name in captions:
            if name not in columns.texts:
                raise DatasetError(
                    f"shard {shard.where} has no captions {name}, only "
                    f"{', '.join(n for n in columns.texts if n != 'id')}; prepare the dataset with "
                    "them, or change text.captions and stages[].captions of the recipe"
                )
            if embeddings and column(name) not in columns.raw:
                raise DatasetError(
                    f"shard {shard.where} has no embeddings of {name}; write them with `daybreak "
                    "prepare --embeddings`, or set recipe.text.precomputed to false"
                )


def embeddings_of(cards: Sequence[tuple[str, DatasetCard]]) -> TextEmbeddings:
    """Of the datasets at these addresses; all of one encoder.

    Raises:
        DatasetError: one has none, or others than the first.
    """
    first: TextEmbeddings | None = None
    for url, card in cards:
        found = card.embeddings
        if found is None:
            raise DatasetError(
                f"{url}: its card says nothing of embeddings; write them with `daybreak prepare "
                "--embeddings`, or set recipe.text.precomputed to false"
            )
        if first is not None and _kind(found) != _kind(first):
            raise DatasetError(
                f"{url}: its embeddings are of {_said(found)}, those of {cards[0][0]} of "
                f"{_said(first)}; all streams need the same"
            )
        first = first or found
    assert first is not None  # a corpus has a stream
    return first


def _said(found: TextEmbeddings) -> str:
    case = ", lower case" if found.lower_case else ""
    return f"{found.encoder} ({found.max_tokens} tokens, {found.precision}{case})"


def _kind(found: TextEmbeddings) -> tuple[object, ...]:
    read = found.tokenizer, found.lower_case, found.max_tokens
    return found.checksum, *read, found.width, found.precision, found.null
