"""Gathers what the cluster holds about one run.

The cache is late, and right after a start it is half full. That does no harm to an attempt that
runs; but a Job that seems to be gone, or pods that seem to tell why they ended, lead to what cannot
be taken back. So for these the API server itself is asked.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import TERMINAL
from daybreak_operator.belonging import Children, children
from daybreak_operator.cache import Body, Cache, Key
from daybreak_operator.capacity import Capacity, Claims, Inventory
from daybreak_operator.children import prepare
from daybreak_operator.children.job import budget, claims, job, secrets
from daybreak_operator.children.names import config_name
from daybreak_operator.cluster import Cluster
from daybreak_operator.conditions import is_stopping
from daybreak_operator.errors import ForeignObjectError, RefusedObjectError
from daybreak_operator.observation import (
    FixedRecipe,
    Observation,
    PodView,
)
from daybreak_operator.progress import ProgressClient
from daybreak_operator.restarts import avoided
from daybreak_operator.sizing import growth, reduced
from daybreak_trainer.contract import SOURCE_ROLE
from daybreak_trainer.plan.limits import Limits, refuse_without_limits
from daybreak_trainer.recipe import RecipeError, resolve

_ASK_SECONDS = 600.0
_GOING_SECONDS = 20.0
_INVENTORY_SECONDS = 15.0
_YOUNG_SECONDS = 60.0
_FOUND_SECONDS = 30.0
KINDS = ("Job", "Pod")
Bodies = Mapping[str, Sequence[Body]]


class Observer:
    def __init__(
        self,
        cache: Cache,
        cluster: Cluster,
        progress: ProgressClient,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache, self._cluster, self._progress = cache, cluster, progress
        self._now, self._monotonic = now, monotonic
        self._ask_at: dict[Key, float] = {}
        """When the cache is compared with the API server again (monotonic clock)."""
        self._inventory: tuple[float, Inventory | None] = (0.0, None)
        """What the nodes have left, and until when (monotonic clock) that is believed, of all
        runs."""
        self._claims = Claims()
        self._taking_stock = asyncio.Lock()
        self._recipes: dict[Key, FixedRecipe] = {}
        """Of runs that have one. It never changes, so it is read once."""
        self._found: dict[tuple[str, str, str], float] = {}
        """Namespace, kind and name of claims and Secrets that exist, until when (monotonic clock)
        that is believed: the runs of a namespace mostly name the same."""

    async def observe(
        self,
        key: Key,
        run: TrainingRun,
        trouble: ForeignObjectError | RefusedObjectError | None = None,
    ) -> Observation:
        """`trouble` is what kept a child from being made just now."""
        seen = _children(run, self._cached(key))
        settled = run.deleting or run.status.phase in TERMINAL or not run.ours
        doubtful = self._settles if settled else self._leads_on
        if doubtful(key, run, seen):
            seen = _children(run, await self._ask(key, run))
        jobs, pods = seen.jobs, seen.pods
        recipe, problem = (None, None) if settled else await self._recipe(key, run)
        has_job = settled or any(job.attempt == run.status.attempt for job in jobs)
        mine = (p for p in pods if p.attempt == run.status.attempt and not (p.stray or p.prepares))
        zero = next((pod for pod in mine if pod.index == 0 and not pod.over), None)
        room = None if settled else await self._room(key, run, pods, recipe)
        made = next((j for j in jobs if j.attempt == run.status.attempt), seen.preparation)
        held = made if made is not None and made.suspended else None
        return Observation(
            run=run,
            recipe=recipe,
            recipe_problem=problem,
            jobs=jobs,
            pods=pods,
            missing=() if has_job else await self._missing(run),
            foreign=(str(trouble),) if isinstance(trouble, ForeignObjectError) else (),
            refused=(str(trouble),) if isinstance(trouble, RefusedObjectError) else (),
            progress=await self._progress.ask(zero.address) if zero and zero.address else None,
            now=self._now(),
            lost_nodes=room.lost if room else frozenset(),
            free_nodes=len(room.free) if room else None,
            preparation=seen.preparation,
            queue_says=await self._cluster.queue_says(run, held) if held and not settled else None,
        )

    def _due(self, key: Key) -> bool:
        """Whether the cache is to be compared with the API server. The first time for a run is
        anywhere in the interval, so an operator that starts does not ask for all runs at once."""
        now = self._monotonic()
        return self._ask_at.setdefault(key, now + _ASK_SECONDS * random.random()) <= now

    def _leads_on(self, key: Key, run: TrainingRun, seen: Children) -> bool:
        """Whether what the cache holds may lead to what cannot be taken back, or is old."""
        if any(job.deleting for job in seen.jobs):
            self._ask_soon(key)
        return self._due(key) or not self._undisturbed(run, seen)

    def _settles(self, key: Key, run: TrainingRun, seen: Children) -> bool:
        """Whether, by the cache, a failed run's last worker is gone: its ledger is closed once. Of
        workers that are left when a run is over: whether they have been there for long."""
        if run.deleting or not run.ours:
            return False
        if all(pod.over for pod in seen.pods):
            return is_stopping(run.status)
        self._ask_soon(key)
        return self._due(key)

    def _ask_soon(self, key: Key) -> None:
        """Something is about to go. That it is gone nobody may tell, where its watch began anew
        just then."""
        soon = self._monotonic() + _GOING_SECONDS
        self._ask_at[key] = min(self._ask_at.get(key, soon), soon)

    def _undisturbed(self, run: TrainingRun, seen: Children) -> bool:
        """Whether what the cache holds leads to nothing that cannot be taken back: the attempt's
        Job is there and nothing has ended, or all of it is going anyway; or the data is still being
        prepared; or there never was a Job, of this run or of one before it under its name.
        Where the first one was created and not seen yet, creating it again does nothing."""
        job = next((j for j in seen.jobs if j.attempt == run.status.attempt), None)
        if job is None and run.status.attempt == 0 and seen.preparation is not None:
            return seen.preparation.at_work
        if job is None:
            first = run.status.attempt <= 1 and run.status.workers is None
            first = first and not (run.spec.suspend and run.status.attempt)
            known = (run.namespace, run.name) in self._cache.used_names
            return first and run.spec.data.prepare is None and not known
        if job.deleting:
            return True
        mine = [p for p in seen.pods if p.attempt == job.attempt and not (p.stray or p.prepares)]
        if job.suspended:
            # One that had its nodes was evicted, unless this is what was before.
            attempt = run.status.current_attempt
            return not mine and (attempt is None or attempt.admitted_time is None)
        begun = any(pod.index == 0 for pod in mine) or self._young(run)
        return begun and job.failed is None and not any(pod.over for pod in mine)

    def _young(self, run: TrainingRun) -> bool:
        """Whether the attempt began so recently that its pods may well be still to come."""
        attempt = run.status.current_attempt
        if attempt is None:
            return False
        age = self._now() - datetime.fromisoformat(attempt.created_time)
        return age.total_seconds() < _YOUNG_SECONDS

    async def _room(
        self, key: Key, run: TrainingRun, pods: Sequence[PodView], recipe: FixedRecipe | None
    ) -> Capacity | None:
        """What the cluster's nodes have for the run, where that matters: it may grow back, or a
        node of its does not answer. None where the operator may not read nodes."""
        silent = any(pod.node_silent and not pod.over for pod in pods)
        if recipe is None or not (silent or reduced(run)):
            return None
        async with self._taking_stock:
            until, left = self._inventory
            if until <= self._monotonic():
                left = await self._cluster.inventory()
                self._inventory = (self._monotonic() + _INVENTORY_SECONDS, left)
        if left is None:
            return None
        wanted, now, at = run.spec.workers.nodes, self._now(), self._monotonic()
        number, keeps_off = max(1, run.status.attempt), avoided(run, now)
        worker = job(run, number, recipe, nodes=wanted, avoided=keeps_off)["spec"]["template"]
        mine = {pod.node for pod in pods if pod.node is not None}
        found = left.capacity(worker, mine, self._claims.of_others(run.uid, at))
        if taken := found.free[: growth(run, now)]:
            self._claims.claim(run.uid, {*mine, *taken}, at)
        return found

    def _cached(self, key: Key) -> Bodies:
        jobs, pods = (self._cache.children(kind, key) for kind in KINDS)
        return {"Job": jobs, "Pod": [*pods, *self._cache.last_words(key)]}

    async def _ask(self, key: Key, run: TrainingRun) -> Bodies:
        """The API server's own answer, and last words of pods that it does not know any more. What
        it does not know leaves the cache."""
        cached = {kind: _uids(self._cache.children(kind, key)) for kind in KINDS}
        found = await self._cluster.children(run)
        for kind in KINDS:
            self._cache.forget(kind, key, cached[kind] - _uids(found[kind]))
        if not any(found.values()):
            self._cache.name_is_free(key)
        self._ask_at[key] = self._monotonic() + _ASK_SECONDS
        return {"Job": found["Job"], "Pod": [*found["Pod"], *self._cache.last_words(key)]}

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._ask_at.pop(key, None)
        self._recipes.pop(key, None)

    async def _recipe(self, key: Key, run: TrainingRun) -> tuple[FixedRecipe | None, str | None]:
        """The recipe that the run was given, else the one that it is to be given; or what is wrong
        with it."""
        wanted = run.status.recipe_hash
        known = self._recipes.get(key)
        if wanted is not None and (known is None or known.hash != wanted):
            known = await self._cluster.recipe(run, wanted)
        if wanted is None or known is None:
            try:
                recipe = resolve(run.raw_recipe)
                refuse_without_limits(recipe, Limits.of(budget(run), run.spec.deadline))
                known = FixedRecipe.of(recipe)
            except RecipeError as error:
                return None, str(error)
        if wanted is not None and known.hash != wanted:
            return None, (
                f"ConfigMap {config_name(run, wanted)}, which held this run's recipe, is gone, and "
                f"this version of Daybreak resolves preset {run.raw_recipe.get('preset')} to "
                "another one; create the run again"
            )
        self._recipes[key] = known
        return known, None

    async def _missing(self, run: TrainingRun) -> tuple[str, ...]:
        """One sentence for each claim and Secret the spec names that does not exist."""
        mounted, kept = claims(run), secrets(run)
        if run.spec.data.prepare is not None:
            mounted, kept = mounted | prepare.claims(run), kept | prepare.secrets(run)
        kinds = {
            "PersistentVolumeClaim": {r: c.claim_name for r, c in mounted.items()},
            "Secret": {role: secret.name for role, secret in kept.items()},
        }
        return tuple(
            [
                f"{kind} {name} ({_field(role)}) does not exist in namespace {run.namespace}: "
                "create it, or name another."
                for kind, wanted in kinds.items()
                for role, name in wanted.items()
                if await self._is_missing(run, kind, name)
            ]
        )

    async def _is_missing(self, run: TrainingRun, kind: str, name: str) -> bool:
        key, now = (run.namespace, kind, name), self._monotonic()
        if self._found.get(key, 0.0) > now:
            return False
        missing = await self._cluster.missing(run, kind, name)
        self._found = {known: until for known, until in self._found.items() if until > now}
        if not missing:
            self._found[key] = now + _FOUND_SECONDS
        return missing


def _children(run: TrainingRun, bodies: Bodies) -> Children:
    return children(run, bodies["Job"], bodies["Pod"])


def _uids(bodies: Iterable[Body]) -> set[str]:
    return {body["metadata"]["uid"] for body in bodies}


def _field(role: str) -> str:
    if role == SOURCE_ROLE:
        return "spec.data.prepare"
    return f"spec.data.streams[{role.removeprefix('data-')}]" if "data-" in role else f"spec.{role}"
