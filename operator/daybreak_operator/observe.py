"""Gathers what the cluster holds about one run."""

from __future__ import annotations

from datetime import UTC, datetime

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.cache import Cache, Key
from daybreak_operator.children.job import claims, secrets
from daybreak_operator.cluster import Cluster
from daybreak_operator.observation import JobView, Observation, PodView
from daybreak_operator.progress import ProgressClient
from daybreak_trainer.recipe import Recipe, RecipeError, resolve


class Observer:
    def __init__(self, cache: Cache, cluster: Cluster, progress: ProgressClient) -> None:
        self._cache, self._cluster, self._progress = cache, cluster, progress

    async def observe(self, key: Key, run: TrainingRun, foreign: tuple[str, ...]) -> Observation:
        jobs = tuple(
            view
            for view in map(JobView.of, self._cache.children("Job", key))
            if view.owner_uid == run.uid
        )
        pods = tuple(PodView.of(body) for body in self._cache.children("Pod", key))
        recipe, problem = _recipe(run)
        has_job = any(job.attempt == run.status.attempt for job in jobs)
        zero = next(
            (p for p in pods if p.index == 0 and p.attempt == run.status.attempt and not p.over),
            None,
        )
        return Observation(
            run=run,
            recipe=recipe,
            recipe_problem=problem,
            jobs=jobs,
            pods=pods,
            missing=() if has_job else await self._missing(run),
            foreign=foreign,
            progress=await self._progress.ask(zero.address) if zero and zero.address else None,
            now=datetime.now(UTC),
        )

    async def _missing(self, run: TrainingRun) -> tuple[str, ...]:
        """One sentence for each claim and Secret the spec names that does not exist."""
        kinds = {
            "PersistentVolumeClaim": {r: c.claim_name for r, c in claims(run).items()},
            "Secret": {role: secret.name for role, secret in secrets(run).items()},
        }
        return tuple(
            [
                f"{kind} {name} ({_field(role)}) does not exist in namespace {run.namespace}."
                for kind, wanted in kinds.items()
                for role, name in wanted.items()
                if await self._cluster.missing(run, kind, name)
            ]
        )


def _field(role: str) -> str:
    return f"spec.data.streams[{role.removeprefix('data-')}]" if "data-" in role else f"spec.{role}"


def _recipe(run: TrainingRun) -> tuple[Recipe | None, str | None]:
    try:
        return resolve(run.raw_recipe), None
    except RecipeError as error:
        return None, str(error)
