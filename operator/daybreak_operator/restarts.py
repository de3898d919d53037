"""What an attempt's end means for the run: charged or not, how soon again, or never. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

from daybreak_operator.api.duration import seconds
from daybreak_operator.api.run import TrainingRun
from daybreak_operator.api.status import TERMINAL, AttemptStatus, FailureStatus, SuspectNode
from daybreak_operator.draft import Draft
from daybreak_operator.failures import Failure, ruled
from daybreak_operator.text import plain
from daybreak_trainer.contract import rfc3339

MAX_FAILURE = 2048
"""Characters of a failure's sentence; the CRD takes no more."""
_MAX_TIMES = 1000
_MAX_NODES = 64
_SPREAD = 0.25
"""Share of a pause that runs do not have in common."""
_MANY = 3
"""Endings in a row without a new commit that are worth a word."""


def record(draft: Draft, failure: Failure) -> tuple[str, str] | None:
    """Puts the end of the current attempt on record; returns reason and message where the run
    fails with it."""
    run = draft.observation.run
    policy = run.spec.failure_policy
    failure = ruled(_in_its_history(failure, draft), policy)
    draft.take(failure.progress)
    draft.take_checkpoint(failure.checkpoint)
    progressed = end_attempt(draft, failure.ended_at)
    draft.values["last_failure"] = FailureStatus(
        reason=failure.reason,
        class_=failure.kind,
        message=plain(failure.message, MAX_FAILURE),
        exit_code=failure.exit_code,
        pod=failure.pod,
        node=failure.node,
        rank=failure.rank,
        rule=failure.rule,
        charged=failure.verdict == "charged",
        attempt=run.status.attempt,
        step=failure.step,
        time=draft.now,
    )
    _suspect(draft, failure)
    if failure.verdict == "final":
        return failure.reason, failure.message
    if failure.kind == "OutOfMemory" and failure.verdict == "charged":
        draft.values["out_of_memory"] = run.status.out_of_memory + 1
        if run.status.out_of_memory >= 1 and failure.rule is None:
            return failure.reason, f"twice, and so it would again: {failure.message}"
    if failure.verdict == "charged":
        if (end := _charge(draft, failure, progressed)) is not None:
            return end
    else:
        interrupted(draft)
    return None


def _in_its_history(failure: Failure, draft: Draft) -> Failure:
    """A store that refuses a run's first attempt will refuse the next. A run that has commits was
    served by all its stores: the one that refuses now may be put right while the run waits."""
    if failure.reason == "StorageRefused" and draft.stored.checkpoint is not None:
        return replace(failure, verdict="charged")
    return failure


def interrupted(draft: Draft) -> None:
    draft.values["interruptions"] = draft.stored.interruptions + 1


def end_attempt(draft: Draft, at: datetime | None = None, *, expected: bool = False) -> bool:
    """The current attempt is over: notes when, and when the next may begin. Returns whether it had
    committed something new. An `expected` end, for a new size say, costs no pause."""
    attempt: AttemptStatus | None = draft.get("current_attempt")
    now = draft.observation.now
    progressed = _progressed(draft, attempt)
    if attempt is not None:
        ended = min(max(at or now, *_lived_until(draft, attempt)), now)
        draft.values["current_attempt"] = attempt.model_copy(
            update={"ended_time": rfc3339(ended, "seconds")}
        )
    if progressed:
        draft.values |= {"fruitless": 0, "no_progress": 0}
    elif not expected:
        fruitless = draft.stored.fruitless + 1
        draft.values["fruitless"] = fruitless
        pause = timedelta(seconds=_pause_seconds(draft, fruitless))
        draft.values["next_attempt_time"] = rfc3339(now + pause, "seconds")
    return progressed


def told_of_endings(draft: Draft) -> None:
    """Condition Degraded: attempts end again and again, until one of them commits."""
    attempt: AttemptStatus | None = draft.get("current_attempt")
    over = draft.get("phase") in (*TERMINAL, "Suspended")
    if over or draft.get("fruitless") < _MANY or _progressed(draft, attempt):
        return
    failure = draft.get("last_failure")
    last = f"; the last one: {failure.reason}: {failure.message}" if failure else ""
    draft.degraded(
        "RepeatedlyInterrupted", f"attempts end one after the other without a new commit{last}"
    )


def _progressed(draft: Draft, attempt: AttemptStatus | None) -> bool:
    commit = draft.get("checkpoint")
    return attempt is not None and commit is not None and commit.step > attempt.start_step


def _lived_until(draft: Draft, attempt: AttemptStatus) -> list[datetime]:
    """When the attempt was not over yet, by our clock: that of the node which tells of its end may
    be slow."""
    told = draft.stored.progress
    times = (
        attempt.created_time,
        attempt.admitted_time,
        attempt.first_step_time,
        told.advanced_time if told is not None else None,
    )
    return [datetime.fromisoformat(time) for time in times if time is not None]


def _charge(draft: Draft, failure: Failure, progressed: bool) -> tuple[str, str] | None:
    """Charges a failure to the budget; reason and message if that is used up."""
    policy, status = draft.observation.run.spec.failure_policy, draft.stored
    window = seconds(policy.window)
    earliest = draft.observation.now - timedelta(seconds=window)
    times = [t for t in status.restart_times if not window or datetime.fromisoformat(t) > earliest]
    spent = len(times) if window else status.restarts
    said = f"{failure.reason}: {failure.message}"
    if spent >= policy.max_restarts:
        within = f" within {policy.window}" if window else ""
        return (
            "RestartLimitExceeded",
            f"attempt {status.attempt} failed and failurePolicy.maxRestarts is "
            f"{policy.max_restarts}{within}: {said}",
        )
    without = 0 if progressed else status.no_progress + 1
    draft.values["no_progress"] = without
    if policy.no_progress_limit and without >= policy.no_progress_limit:
        return (
            "NoProgress",
            f"{without} attempts in a row failed without a newer commit "
            f"(failurePolicy.noProgressLimit), the last one: {said}",
        )
    draft.values["restarts"] = status.restarts + 1
    draft.values["restart_times"] = (*times, draft.now)[-_MAX_TIMES:]
    return None


def _pause_seconds(draft: Draft, fruitless: int) -> float:
    run = draft.observation.run
    backoff = run.spec.failure_policy.backoff
    doublings = min(fruitless - 1, 16)
    longest = min(seconds(backoff.initial) * 2.0**doublings, seconds(backoff.max))
    # Runs that ended together, each with a part of the nodes that all want, must not meet again.
    dice = Random(f"{run.uid}/{run.status.attempt}")
    return longest * (1 - _SPREAD * dice.random())


def _suspect(draft: Draft, failure: Failure) -> None:
    """Remembers the node of a failure that may be the node's, and forgets old ones."""
    policy, now = draft.observation.run.spec.health_policy, draft.observation.now
    earliest = now - timedelta(seconds=seconds(policy.node_window))
    nodes: dict[str, SuspectNode] = {}
    for node in draft.get("suspect_nodes"):
        times = tuple(time for time in node.times if datetime.fromisoformat(time) > earliest)
        if times:
            nodes[node.name] = node.model_copy(update={"times": times})
    if (failure.blames_node or failure.avoid_node) and failure.node is not None:
        old = nodes.pop(failure.node, None)
        times = (*(old.times if old else ()), draft.now)
        nodes[failure.node] = SuspectNode(
            name=failure.node,
            # More than are asked for would only fill the object.
            times=times[-max(1, policy.node_failures) :],
            reason=failure.reason,
            avoid=failure.avoid_node or (old is not None and old.avoid),
        )
    draft.values["suspect_nodes"] = tuple(nodes.values())[-_MAX_NODES:]


def forgive(draft: Draft) -> bool:
    """Forgets the suspect nodes, for without them the run cannot be placed; whether there were any
    to avoid."""
    limit = draft.observation.run.spec.health_policy.node_failures
    suspects = draft.stored.suspect_nodes
    known = any(node.avoid or len(node.times) >= limit > 0 for node in suspects)
    if known:
        draft.values["suspect_nodes"] = ()
    return known


def avoided(run: TrainingRun, now: datetime) -> tuple[str, ...]:
    """Nodes that a new attempt keeps away from: those of so many failures, or of a user's rule."""
    policy = run.spec.health_policy
    earliest = now - timedelta(seconds=seconds(policy.node_window))
    found = []
    for node in run.status.suspect_nodes:
        lately = sum(datetime.fromisoformat(time) > earliest for time in node.times)
        if lately and (node.avoid or lately >= policy.node_failures > 0):
            found.append(node.name)
    return tuple(found)
