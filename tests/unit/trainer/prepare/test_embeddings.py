"""`prepare --embeddings`: what the loader hands out is what the encoder says of the caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoders import WIDTH, save_t5

from daybreak_trainer.checkpoint.layout import DataPosition
from daybreak_trainer.data import embeddings as stored
from daybreak_trainer.data.batch import Batch, StepPlan
from daybreak_trainer.data.cache import NodeCache
from daybreak_trainer.data.card import Precision
from daybreak_trainer.data.corpus import Corpus
from daybreak_trainer.data.counters import DataCounters
from daybreak_trainer.data.dataset import Stream
from daybreak_trainer.data.errors import DatasetError
from daybreak_trainer.data.open_corpus import open_corpus
from daybreak_trainer.data.pipeline import Loader
from daybreak_trainer.data.shards import Shards
from daybreak_trainer.models.padding import Padding
from daybreak_trainer.models.text import check_encoder, pretrained
from daybreak_trainer.prepare.embeddings import Embedder, EmbeddingColumn
from daybreak_trainer.prepare.prepare import prepare
from daybreak_trainer.prepare.rewrite import rewrite
from daybreak_trainer.recipe.text import Caption

WORDS = ["a", "and", "red", "green", "blue", "yellow", "purple", "circle", "square", "triangle"]
BOTH = ("caption", "caption_short")
MIX = tuple(Caption(column=name, weight=1.0) for name in BOTH)
TOKENS = 7


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_t5(tmp_path_factory.mktemp("t5"), WORDS)


def embedded(folder: Path, encoder: Path, precision: Precision) -> tuple[Path, Embedder]:
    prepare("shapes", folder / "images", count=30, shard_bytes=1 << 12)
    embedder = Embedder(str(encoder), TOKENS, precision)
    columns = [EmbeddingColumn(embedder, name) for name in BOTH]
    rewrite(str(folder / "images"), folder / "out", columns)
    return folder / "out", embedder


def batch_of(folder: Path, cache: Path, size: int) -> tuple[Corpus, Batch]:
    counters = DataCounters()
    corpus = open_corpus([Stream(str(folder))], counters, captions=BOTH, embeddings=True)
    shards = Shards(corpus, NodeCache(cache, None, counters), counters)
    plans = [StepPlan(0, size, MIX)]
    loader = Loader(corpus, shards, DataPosition(), plans, seed=3, rank=0, world=1)
    try:
        return corpus, next(iter(loader))
    finally:
        loader.close()


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("8bit", 2e-2)])
def test_a_batch_has_the_embeddings_of_its_captions(
    tmp_path: Path, encoder: Path, precision: Precision, tolerance: float
) -> None:
    """Of the one that was drawn for each sample, cut to its tokens, and nothing behind it; the card
    has the empty prompt's. In 8 bits half as many bytes, and an error of at most half a level."""
    folder, embedder = embedded(tmp_path, encoder, precision)
    corpus, batch = batch_of(folder, tmp_path / "cache", 20)
    tower = pretrained(str(encoder), Padding(TOKENS, None))
    assert corpus.embeddings is not None
    check_encoder(corpus.embeddings, tower)
    expected, mask = tower.embed(batch.captions)
    lengths = mask.sum(dim=1)
    assert batch.text_lengths is not None
    assert batch.text_lengths.tolist() == lengths.tolist()
    assert len(set(batch.text_lengths)) > 1
    text = stored.restored(
        batch.tensors[stored.TEXT], batch.tensors.get(stored.SCALE), torch.float32
    )
    longest = int(lengths.max())
    wanted = torch.where(mask[:, :longest, None], expected[:, :longest], 0.0)
    torch.testing.assert_close(text, wanted, rtol=tolerance, atol=tolerance)
    null = stored.null_text(corpus.embeddings)
    hidden, _ = tower.embed([""])
    torch.testing.assert_close(null, hidden[0, : len(null)], rtol=tolerance, atol=tolerance)
    mean = embedder.tokens / embedder.captions
    a_token = {"bf16": 2 * WIDTH, "8bit": WIDTH + 4}[precision]
    assert embedder.bytes / embedder.captions == pytest.approx(4 + mean * a_token)


@pytest.mark.parametrize("precision", ["bf16", "8bit"])
def test_values_come_back_at_any_length(precision: Precision) -> None:
    """A caption without a token too; a value of another width is refused, not misread."""
    states = [torch.randn(length, 6).bfloat16().float() for length in (3, 0, 5)]
    values = [stored.encoded(state, precision) for state in states]
    text, scale, lengths = stored.packed(values, 6, precision)
    assert lengths.tolist() == [3, 0, 5]
    back = stored.restored(text, scale, torch.float32)
    for row, state in enumerate(states):
        levels = np.zeros(len(state))
        if precision == "8bit" and len(state):
            levels = (state.abs().amax(dim=1) / 127 / 2).numpy()
        error = (back[row, : len(state)] - state).abs().numpy()
        assert (error <= levels[:, None] + 1e-6).all()
        assert not back[row, len(state) :].any()
    with pytest.raises(ValueError, match="3 tokens"):
        stored.packed(values, 8, precision)


def test_data_of_another_encoder_is_refused(tmp_path: Path, encoder: Path) -> None:
    """Other weights under the same path, or captions cut elsewhere; and data without embeddings, or
    without captions of that name, says what to do."""
    described = Embedder(str(encoder), TOKENS, "bf16").described
    check_encoder(described, pretrained(str(encoder), Padding(TOKENS, None)))
    with pytest.raises(DatasetError, match=r"at most 7 tokens, recipe.text.maxTokens is 8"):
        check_encoder(described, pretrained(str(encoder), Padding(8, None)))
    lower = pretrained(str(encoder), Padding(TOKENS, None), lower_case=True)
    with pytest.raises(DatasetError, match=r"as they were written.*with --lower-case"):
        check_encoder(described, lower)
    check_encoder(Embedder(str(encoder), TOKENS, "bf16", lower_case=True).described, lower)
    other = save_t5(tmp_path / "other", WORDS, seed=1)
    with pytest.raises(DatasetError, match="prepare the data with the recipe's encoder"):
        check_encoder(described, pretrained(str(other), Padding(TOKENS, None)))
    renamed = save_t5(tmp_path / "renamed", ["the", *WORDS[1:]])
    tower = pretrained(str(renamed), Padding(TOKENS, None))
    with pytest.raises(DatasetError, match="restore the tokenizer"):
        check_encoder(described, tower)
    prepare("digits", tmp_path / "digits", count=3)
    stream, counters = [Stream(str(tmp_path / "digits"))], DataCounters()
    with pytest.raises(DatasetError, match=r"no embeddings of caption; .*--embeddings"):
        open_corpus(stream, counters, embeddings=True)
    with pytest.raises(DatasetError, match="no captions caption_short, only caption;"):
        open_corpus(stream, counters, captions=BOTH)
