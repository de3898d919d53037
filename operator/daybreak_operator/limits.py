"""What ends a run whatever its workers do: deadlines and the budget. Pure.

The trainer plans to end inside budget and deadline; here is what holds when it cannot: between
attempts, and where workers do not come to an end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from daybreak_operator.api.duration import seconds
from daybreak_operator.children.job import limits_hash
from daybreak_operator.draft import Draft
from daybreak_operator.failures import Failure
from daybreak_operator.ledger import account
from daybreak_operator.observation import JobView
from daybreak_trainer.contract import BudgetSettings
from daybreak_trainer.plan.limits import Limits
from daybreak_trainer.recipe import RecipeError

_SECONDS_TO_END = 600.0
"""That workers at work get beyond a limit that they know of, for their last commit and export."""

_IDLE = ("queue", "suspended", "preparation")
"""Accounts in which a run is not active; of one that was never admitted, between attempts too."""
_OF_TRAINER = "LimitReached"
"""Reason of a trainer that has come to a limit."""
_FROM_ITS_COMMIT = "and with checkpoint.resumeFrom where status.checkpoint.url names a commit"


@dataclass(frozen=True)
class LimitReached:
    reason: str
    message: str


def reached(draft: Draft, *, at_work: bool) -> LimitReached | None:
    """The limit that the run has reached; `at_work` says that an attempt has its workers."""
    seen = draft.observation
    spec, status = seen.run.spec, seen.run.status
    late = _SECONDS_TO_END if at_work else 0.0
    deadline = _deadline_unix_time(spec.deadline)
    if deadline is not None and seen.now.timestamp() - late >= deadline:
        return LimitReached(
            "DeadlineExceeded",
            f"spec.deadline is {spec.deadline}, and the run had not come to its end by then; "
            f"create it again with a later one, {_FROM_ITS_COMMIT}",
        )
    attempt = status.current_attempt
    ledger = account(seen.run, attempt, draft.get("current_attempt"), None, seen.now)
    idle = [*_IDLE, *(() if ledger.held_seconds else ("restart",))]
    idle_seconds = sum(ledger.lost_seconds.get(name, 0) for name in idle)
    total = ledger.productive_seconds + sum(ledger.lost_seconds.values())
    if spec.active_deadline is not None and total - idle_seconds >= seconds(spec.active_deadline):
        return LimitReached(
            "DeadlineExceeded",
            f"the run was active for activeDeadline ({spec.active_deadline}); create it again with "
            f"a longer one, {_FROM_ITS_COMMIT}",
        )
    budget = spec.budget
    if budget.duration and ledger.held_seconds >= seconds(budget.duration) + late:
        return LimitReached(
            "BudgetExhausted",
            f"the run held devices for {ledger.held_seconds / 3600:.2f} hours, and "
            f"budget.duration is {budget.duration}; create it again with a longer one, "
            f"{_FROM_ITS_COMMIT}",
        )
    if budget.max_cost and budget.gpu_hour_price and (ledger.device_seconds or ledger.held_seconds):
        devices = ledger.device_seconds / max(1, ledger.held_seconds)
        cost = (ledger.device_seconds - late * devices) / 3600 * float(budget.gpu_hour_price)
        if cost >= float(budget.max_cost):
            return LimitReached(
                "BudgetExhausted",
                f"the run cost {ledger.cost}, and budget.maxCost is {budget.max_cost}; create it "
                f"again with a higher one, {_FROM_ITS_COMMIT}",
            )
    return None


def by_limits_of_now(draft: Draft, job: JobView, failure: Failure) -> Failure:
    """The failure that ended the attempt. Where its limits were changed since it began, and those
    of now are not reached, theirs end no run: the next attempt plans with the new ones."""
    if failure.reason != _OF_TRAINER or job.limits_hash == "":
        return failure
    same = job.limits_hash == limits_hash(draft.observation.run.spec)
    if same or reached(draft, at_work=False) is not None:
        return failure
    message = f"{failure.message}; budget or deadline were changed meanwhile, and the run goes on"
    return replace(failure, verdict="uncharged", kind="Interruption", message=message)


def _deadline_unix_time(text: str | None) -> float | None:
    """None also for what is no time: before an attempt begins, the run fails and says so. A number,
    for the last of the year 9999 has no later or westerly `datetime`."""
    try:
        return Limits.of(BudgetSettings(), text).deadline_unix_time
    except RecipeError:
        return None
