"""An average of any length, put together after the run from the two that were kept in its course
(EDM2, arXiv 2312.02696, section 3), and exported as the run exports its own. Needs no GPU, and in
memory the weights twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daybreak_trainer.checkpoint import snapshots
from daybreak_trainer.checkpoint.layout import DATA, RECIPE, SnapshotRef
from daybreak_trainer.checkpoint.snapshots import Manifest
from daybreak_trainer.checkpoint.storage import Storage
from daybreak_trainer.data.description import CorpusDescription
from daybreak_trainer.export import pipeline
from daybreak_trainer.export.model_card import CARD, About, model_card
from daybreak_trainer.export.names import inside
from daybreak_trainer.export.publish import ExportCard, check_no_other, publish
from daybreak_trainer.export.tower import read_tower
from daybreak_trainer.models import autoencoder
from daybreak_trainer.optim.power_profile import Combination, Profile, combine
from daybreak_trainer.recipe import parse


@dataclass(frozen=True)
class Plan:
    """What to add up."""

    run: Storage
    wanted: Profile
    kept: tuple[tuple[SnapshotRef, Manifest], ...]
    combination: Combination
    """Coefficients: of each snapshot's averages in their order, snapshot by snapshot."""

    @property
    def terms(self) -> list[tuple[SnapshotRef, int, float, float]]:
        """Snapshot, number of its average, that one's deviation, and its coefficient."""
        names = [
            (snapshot, number, deviation)
            for snapshot, manifest in self.kept
            for number, deviation in enumerate(manifest.deviations)
        ]
        coefficients = self.combination.coefficients.tolist()
        return [(*name, value) for name, value in zip(names, coefficients, strict=True)]

    @property
    def last(self) -> tuple[SnapshotRef, Manifest]:
        return self.kept[-1]


def plan(run: Storage, deviation: float, at: int | None = None) -> Plan:
    """How to put together the average of this width at `at` samples, by default the last ones that
    were kept. Reads and verifies all of the snapshots.

    Raises:
        StorageError: there are none, or one is damaged.
        ValueError: a width that no average has, or a time at which the run had not begun or was
            over.
    """
    index = snapshots.read_index(run)
    kept = tuple((snapshot, snapshots.read_manifest(run, snapshot)) for snapshot in index.snapshots)
    if not kept:
        raise ValueError(f"{run.url}: no average has been kept yet")
    end = kept[-1][0].samples
    at = end if at is None else at
    if not 0 < at <= end:
        raise ValueError(f"{at} samples: the run's averages end at {end}, and begin behind 0")
    profiles = [
        Profile(width, float(snapshot.samples))
        for snapshot, manifest in kept
        for width in manifest.deviations
    ]
    wanted = Profile(deviation, float(at))
    return Plan(run, wanted, kept, combine(profiles, wanted))


def put_together(chosen: Plan) -> dict[str, Tensor]:
    """The average, by parameter of `TextToImage`: whole, fp32, on the CPU."""
    total: dict[str, Tensor] = {}
    for snapshot, number, _, coefficient in chosen.terms:
        if coefficient == 0.0:
            continue
        average = snapshots.read_average(snapshots.place_of(chosen.run, snapshot), number)
        for name, value in average.items():
            if name in total:
                total[name].add_(value, alpha=coefficient)
            else:
                total[name] = value.mul_(coefficient) if coefficient != 1.0 else value
    return total


def documents(chosen: Plan, folder: Path) -> None:
    """Writes what lies beside the last snapshot's tensors: recipe, data, text tower.

    Raises:
        ValueError: the snapshot names a file that would lie elsewhere.
    """
    snapshot, manifest = chosen.last
    place = snapshots.place_of(chosen.run, snapshot)
    for name in manifest.files:
        if name.endswith(".distcp") or name == ".metadata":
            continue
        target = inside(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(place.read(name))


def export(chosen: Plan, scratch: Path, target: Storage, name: str, dtype: str) -> str:
    """Writes the whole export to `target` under `name`; returns its URL. What is there already,
    and be it of the same run, is not replaced.

    Raises:
        ExportTakenError: something else is there.
        ValueError: as `documents`.
        RecipeError, HubUnreachableError: a frozen part of the model cannot be loaded.
        StorageError: a store fails.
    """
    card = _card(chosen, name, dtype)
    check_no_other(target, name, card)
    beside, folder = scratch / "beside", scratch / "model"
    documents(chosen, beside)
    recipe = parse(json.loads((beside / RECIPE).read_text()))
    tower = read_tower(recipe, beside)
    vae = None if recipe.latent is None else autoencoder.build(recipe.latent)
    of = pipeline.DTYPES[dtype]
    made = pipeline.build_pipeline(recipe, put_together(chosen), tower, vae, dtype=of)
    pipeline.save_folder(made, recipe, folder)
    snapshot, _ = chosen.last
    corpus = CorpusDescription.model_validate_json((beside / DATA).read_text())
    about = About(
        name=name,
        step=snapshot.point.step,
        samples=snapshot.samples,  # after that step; `average` says as of which it is
        average=_average(chosen),
        dtype=dtype,
        corpus=corpus,
    )
    (folder / CARD).write_text(model_card(recipe, about))
    check_no_other(target, name, card)  # the run may have exported meanwhile
    return publish(folder, target, name, card)


def _average(chosen: Plan) -> str:
    wanted = chosen.wanted
    return (
        f"post-hoc EMA of relative deviation {wanted.deviation:g} at {wanted.samples:,.0f} samples "
        f"(EDM2, arXiv 2312.02696), fit error {chosen.combination.error:.4f}"
    )


def _card(chosen: Plan, name: str, dtype: str) -> ExportCard:
    snapshot, manifest = chosen.last
    return ExportCard(
        uid=manifest.uid,
        run=name,
        namespace="",
        recipe_hash=manifest.recipe_hash,
        step=snapshot.point.step,
        weights=f"{dtype}, {_average(chosen)}",
    )
