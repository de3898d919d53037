"""`decide` against a small simulated cluster: whatever happens, and wherever the operator dies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.spec import TrainingRunSpec
from daybreak_operator.api.status import TrainingRunStatus
from daybreak_operator.children.job import job as job_of
from daybreak_operator.decide import Decision, decide
from daybreak_operator.observation import FixedRecipe, JobView, Observation, PodView
from daybreak_trainer.contract import FINAL_EXIT_CODES, EarlyEnd, Progress, Termination, rfc3339
from daybreak_trainer.recipe import resolve

RECIPE = FixedRecipe.of(resolve({"preset": "smoke"}))
SPEC: dict[str, Any] = {
    "workers": {"image": "i", "nodes": 2},
    "data": {"streams": [{"url": "s3://d"}]},
    "recipe": {"preset": "smoke"},
    "checkpoint": {"storage": "s3://c"},
    "failurePolicy": {"maxRestarts": 2, "noProgressLimit": 0, "backoff": {"initial": "0s"}},
    "scaleCooldown": "0s",
}


def new_run() -> TrainingRun:
    return TrainingRun(
        name="r",
        namespace="n",
        uid="u",
        generation=1,
        resource_version="1",
        deleting=False,
        spec=TrainingRunSpec.model_validate(SPEC),
        status=TrainingRunStatus(),
        raw_recipe={"preset": "smoke"},
    )


def pod(attempt: int, index: int) -> PodView:
    return PodView(
        name=f"r-{attempt}-{index}",
        attempt=attempt,
        index=index,
        phase="Running",
        ready=True,
        deleting=False,
        disrupted=None,
        address=None,
        exit_code=None,
        finished_at=None,
        termination=None,
        waiting=None,
        message="",
    )


@dataclass
class World:
    """A cluster with one run, and an operator that may die after any effect."""

    run: TrainingRun = field(default_factory=new_run)
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: list[PodView] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    """Jobs whose existence is on record in the status."""
    clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    missing: tuple[str, ...] = ()
    progress: Progress | None = None

    def look(self) -> Decision | None:
        self.clock += timedelta(seconds=1)
        seen = Observation(
            run=self.run,
            recipe=RECIPE,
            recipe_problem=None,
            jobs=tuple(self.jobs.values()),
            pods=tuple(self.pods),
            missing=self.missing,
            foreign=(),
            progress=self.progress,
            now=self.clock,
        )
        return decide(seen)

    def reconcile(self, dies_after: int = 99) -> None:
        """One reconciliation that is cut short after `dies_after` effects, as `act` orders them."""
        decision = self.look()
        if decision is None:
            return
        effects = [lambda: self._store(decision.status)]
        if decision.create_job is not None:
            body = decision.create_job
            effects.append(lambda: self._create(body))
        effects += [lambda name=name: self._delete(name) for name in decision.delete_jobs]
        for effect in effects[:dies_after]:
            effect()

    def _store(self, status: TrainingRunStatus) -> None:
        self.run = replace(self.run, status=status)
        if status.workers is not None:
            self.known.add(f"r-{status.attempt}")

    def _create(self, body: dict[str, Any]) -> None:
        name, attempt = body["metadata"]["name"], self.run.status.attempt
        if name in self.jobs:
            return
        assert not self.jobs, "two Jobs at once"
        assert all(p.over for p in self.pods), "a Job beside old pods"
        # A Job that came and went before it was ever seen may be made again under its number.
        assert name not in self.known, "an attempt's number was used twice"
        self.created.append(name)
        nodes = body["spec"]["parallelism"]
        self.jobs[name] = JobView(name, "u", attempt, nodes, False, None, False, False)
        self.pods = [pod(attempt, index) for index in range(nodes)]

    def _delete(self, name: str) -> None:
        if name in self.jobs:
            self.jobs[name] = replace(self.jobs[name], deleting=True)

    def settle(self, times: int = 6) -> None:
        for _ in range(times):
            self.reconcile()
            self.collect()

    def collect(self) -> None:
        """Foreground deletion: pods first, then the Job."""
        gone = [name for name, job in self.jobs.items() if job.deleting]
        for name in gone:
            self.pods = []
            del self.jobs[name]

    def fail(self, index: int, code: int, reason: str = "Broken") -> None:
        self.pods = [
            replace(
                p,
                phase="Failed",
                exit_code=code,
                finished_at=self.clock,
                termination=Termination(reason=reason, message="why", exit_code=code),
            )
            if p.index == index
            else p
            for p in self.pods
        ]

    @property
    def status(self) -> TrainingRunStatus:
        return self.run.status


def test_a_new_run_gets_one_job() -> None:
    """The attempt's number is stored before its Job is made."""
    world = World()
    world.reconcile()
    assert (world.status.attempt, world.jobs) == (1, {})
    world.settle()
    assert world.created == ["r-1"]


@pytest.mark.parametrize("code", sorted(FINAL_EXIT_CODES))
def test_what_a_restart_cannot_cure_ends_the_run(code: int) -> None:
    """At once, with the worker's own reason and message."""
    world = World()
    world.settle()
    world.fail(1, code)
    world.settle()
    assert world.status.phase == "Failed"
    assert world.status.last_failure is not None
    assert world.status.last_failure.message == "why"
    assert world.created == ["r-1"]


def test_crashes_are_charged_until_the_limit() -> None:
    """maxRestarts 2: three attempts, then the run fails and says so."""
    world = World()
    for _ in range(3):
        world.settle()
        world.fail(0, 137)
    world.settle()
    assert world.status.phase == "Failed"
    assert world.status.restarts == 2
    assert world.created == ["r-1", "r-2", "r-3"]


@pytest.mark.parametrize("code", [75, 143])
def test_stops_on_request_are_free(code: int) -> None:
    """However many."""
    world = World()
    for _ in range(5):
        world.settle()
        world.fail(0, code)
    world.settle()
    assert (world.status.restarts, world.status.attempt) == (0, 6)


def test_a_lost_peer_waits_for_the_cause() -> None:
    """A pod that only lost its peer does not decide while the other is still ending."""
    world = World()
    world.settle()
    world.fail(0, 1, "PeerLost")
    world.reconcile()
    assert world.status.last_failure is None
    world.fail(1, 65, "BadData")
    world.settle()
    assert world.status.phase == "Failed"
    assert world.status.last_failure is not None
    assert world.status.last_failure.reason == "BadData"


def test_of_two_ends_in_one_second_the_stop_is_not_the_cause() -> None:
    """A failed pod has the others stopped at once, and times are whole seconds: the run does not
    take the stop for a reason to try again."""
    world = World()
    world.settle()
    world.fail(1, 65, "BadData")
    world.fail(0, 143, "Terminated")
    world.settle()
    assert world.status.last_failure is not None
    assert (world.status.phase, world.status.last_failure.reason) == ("Failed", "BadData")


def test_missing_objects_are_waited_for() -> None:
    """No attempt starts while something the spec names does not exist."""
    world = World(missing=("PersistentVolumeClaim x does not exist.",))
    world.settle()
    assert (world.status.phase, world.created) == ("Pending", [])
    world.missing = ()
    world.settle()
    assert world.created == ["r-1"]


def test_an_end_before_the_last_step_is_an_event() -> None:
    """A new one where it moves, with what helps."""
    world = World()
    world.settle()
    started = rfc3339(world.clock)
    messages = []
    for step in (None, 1700, 1700, 1600):
        end = step and EarlyEnd(step=step, limit="spec.deadline", remedy="put it off")
        world.progress = Progress(
            run_uid="u",
            attempt=1,
            phase="Training",
            total_steps=3000,
            ends_early=end,
            started_at=started,
            updated_at=started,
        )
        decision = world.look()
        assert decision is not None
        messages.append([note.message for note in decision.events])
    told = "spec.deadline ends the run at about step {} of 3000: put it off"
    assert messages == [[], [told.format(1700)], [told.format(1700)], [told.format(1600)]]


def test_suspend_and_resume() -> None:
    """No workers while suspended; the next attempt afterwards."""
    world = World()
    world.settle()
    _respec(world, suspend=True)
    world.settle()
    assert (world.status.phase, world.jobs, world.pods) == ("Suspended", {}, [])
    _respec(world, suspend=False)
    world.settle()
    assert world.created == ["r-1", "r-2"]


def test_a_resize_is_a_new_attempt_at_the_new_size() -> None:
    """Not charged."""
    world = World()
    world.settle()
    _respec(world, nodes=1)
    world.settle(8)
    assert world.created == ["r-1", "r-2"]
    assert len(world.pods) == 1
    assert world.status.restarts == 0


def test_pods_that_a_deleted_job_left_behind_are_waited_for_until_they_end() -> None:
    """Nobody removes them, so the next attempt begins when they are at work no more."""
    world = World()
    world.settle()
    world.jobs = {}
    world.settle()
    assert world.created == ["r-1"]
    world.pods = [replace(p, phase="Succeeded", exit_code=0) for p in world.pods]
    world.settle()
    assert world.created == ["r-1", "r-2"]


def _respec(world: World, suspend: bool = False, nodes: int = 2) -> None:
    spec = SPEC | {"suspend": suspend, "workers": {"image": "i", "nodes": nodes}}
    world.run = replace(world.run, spec=TrainingRunSpec.model_validate(spec))


HAPPENINGS = st.one_of(
    st.tuples(st.just("reconcile"), st.integers(0, 3)),
    st.tuples(st.just("collect"), st.just(0)),
    st.tuples(st.just("fail0"), st.sampled_from([1, 75, 137, 139, 143])),
    st.tuples(st.just("fail1"), st.sampled_from([1, 75, 137, 139, 143])),
    st.tuples(st.just("suspend"), st.integers(0, 1)),
    st.tuples(st.just("nodes"), st.integers(1, 3)),
    st.tuples(st.just("job gone"), st.just(0)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(HAPPENINGS, max_size=40))
def test_whatever_happens_the_rules_hold(happenings: list[tuple[str, int]]) -> None:
    """Never two Jobs, never a number twice, never a charge beyond the limit; ends stay ends."""
    world = World()
    for what, value in happenings:
        before = world.status
        if what == "reconcile":
            world.reconcile(dies_after=value)
        elif what == "collect":
            world.collect()
        elif what.startswith("fail"):
            world.fail(int(what[-1]), value)
        elif what == "suspend":
            _respec(world, suspend=bool(value))
        elif what == "nodes":
            _respec(world, nodes=value)
        else:
            world.jobs, world.pods = {}, []
        assert world.status.attempt >= before.attempt
        assert before.restarts <= world.status.restarts <= 2
        if before.phase in ("Complete", "Failed"):
            assert world.status == before
    _respec(world)
    world.settle(12)
    if world.status.phase != "Failed":
        assert len(world.jobs) == 1


def test_the_pod_is_restricted_and_the_overlay_is_laid_over() -> None:
    """Pod Security's `restricted` level, a Job that fails as a gang, and the user's overlay."""
    overlay = {
        "metadata": {"labels": {"team": "a", "daybreak.dev/run": "other"}},
        "spec": {
            "restartPolicy": "Always",
            "nodeSelector": {"gpu": "yes"},
            "containers": [
                {"name": "trainer", "env": [{"name": "X", "value": "1"}]},
                {"name": "sidecar", "image": "s"},
            ],
        },
    }
    spec = SPEC | {"workers": {"image": "i", "nodes": 2, "template": overlay}}
    run = replace(new_run(), spec=TrainingRunSpec.model_validate(spec))
    body = job_of(run, 1, RECIPE, nodes=2)["spec"]
    template = body["template"]
    trainer, sidecar = template["spec"]["containers"]
    assert body["backoffLimit"] == 0
    assert {rule["action"] for rule in body["podFailurePolicy"]["rules"]} == {"FailJob"}
    assert trainer["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert trainer["securityContext"]["readOnlyRootFilesystem"] is True
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["automountServiceAccountToken"] is False
    assert template["spec"]["restartPolicy"] == "Never"
    assert template["spec"]["nodeSelector"] == {"gpu": "yes"}
    assert template["metadata"]["labels"]["daybreak.dev/run"] == "r"
    assert template["metadata"]["labels"]["team"] == "a"
    assert {"name": "X", "value": "1"} in trainer["env"]
    assert sidecar["name"] == "sidecar"
