"""Scores of drawn images against real ones, each with the name that its extractor allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daybreak_trainer.contract import MetricScore
from daybreak_trainer.evaluate.metrics.clip_score import clip_score
from daybreak_trainer.evaluate.metrics.extractors import (
    CLIP_SCORE_CLIP,
    CMMD_CLIP,
    FD_DINO,
    Extractor,
    Features,
)
from daybreak_trainer.evaluate.metrics.frechet import frechet_distance, statistics
from daybreak_trainer.evaluate.metrics.inception import FID_WEIGHTS
from daybreak_trainer.evaluate.metrics.mmd import cmmd, kid


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """What one extractor sees: of real and of drawn images, and of the drawn ones' captions."""

    real: Features
    drawn: Features
    texts: Features | None = None


def scores(extractor: Extractor, seen: FeatureSet) -> tuple[MetricScore, ...]:
    """All scores that an extractor is for; none of distances where there are fewer than two real
    images."""
    return tuple(_scores(extractor, seen))


def _scores(extractor: Extractor, seen: FeatureSet) -> Iterator[MetricScore]:
    def score(name: str, value: float, standard: bool, real: int = len(seen.real)) -> MetricScore:
        return MetricScore(
            name=name,
            value=value,
            extractor=extractor.label,
            standard=standard,
            images=len(seen.drawn),
            reference_images=real,
        )

    enough = min(len(seen.real), len(seen.drawn)) >= 2
    if extractor.kind == "clip":
        if enough:
            standard = extractor.label == CMMD_CLIP
            value = cmmd(seen.real, seen.drawn)
            yield score("cmmd" if standard else "mmd", value, standard)
        if seen.texts is not None:
            value = clip_score(seen.drawn, seen.texts)
            yield score("clip_score", value, extractor.label == CLIP_SCORE_CLIP, real=0)
        return
    if not enough:
        return
    distance = frechet_distance(statistics(seen.real), statistics(seen.drawn))
    if extractor.kind == "inception":
        standard = extractor.label.endswith(f"sha256:{FID_WEIGHTS}")
        yield score("fid" if standard else "frechet_distance", distance, standard)
        value = kid(seen.real, seen.drawn)
        yield score("kid" if standard else "kernel_distance", value, standard)
        return
    yield score("frechet_distance", distance, extractor.label == FD_DINO)
    yield score("mmd", cmmd(seen.real, seen.drawn), False)


def described(found: Sequence[MetricScore]) -> list[str]:
    """A line a score, for people."""
    return [
        f"{score.name} {score.value:.4g} ({score.extractor}"
        f"{'' if score.standard else ', not the standard extractor of this metric'}; "
        f"{score.images} images"
        f"{f' against {score.reference_images}' if score.reference_images else ''})"
        for score in found
    ]
