"""The hollow workers of `benchmarks/operator` say what the operator expects of a worker, and its
figures are counted as they are said to be."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

import audit
import pytest
from answers import Answers
from free_ports import free_port
from process import between, quantile
from shapes import plain_job
from worker import TOTAL_STEPS, Pace, Worker

from daybreak_operator.progress import ProgressClient
from daybreak_trainer import contract
from daybreak_trainer.contract import Termination

PACE = Pace(first_step_seconds=1.0, step_seconds=0.5, commit_seconds=10.0)


def test_worker_trains_by_the_clock() -> None:
    """Steps, the first step's time and commits follow from the time since its start."""
    worker = Worker("uid", 1, PACE, started=1000.0)
    steps = [worker.progress(1000.0 + after).step for after in (0.0, 0.9, 1.0, 1.5, 11.2)]
    assert steps == [0, 0, 1, 2, 21]
    assert worker.progress(1000.9).first_step_at is None
    late = worker.progress(1011.2)
    assert late.first_step_at == "1970-01-01T00:16:41.000Z"
    assert late.checkpoint is not None
    assert late.checkpoint.step == 20


def test_last_words_fit() -> None:
    """A node passes a termination message on whole, and the operator reads it."""
    told = Termination.decode(Worker("uid", 1, PACE, started=1000.0).last_words().encode().decode())
    assert told is not None
    assert told.progress is not None
    assert told.progress.step == TOTAL_STEPS


async def test_polls_are_answered_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's own client hears of the worker whose address it asked, over and over on one
    connection, and of none where nobody listens."""
    port = free_port()
    monkeypatch.setattr("daybreak_operator.progress.HTTP_PORT", port)
    answers = Answers(port)
    workers = {f"127.99.1.{n}": Worker(f"uid-{n}", n, PACE, started=0.0) for n in (1, 2)}
    for address, worker in workers.items():
        await answers.open(address, lambda worker=worker: worker.progress().to_json())
    async with aclosing(_Closing()) as client:
        for address, worker in [*workers.items(), *workers.items()]:
            progress = await client.ask(address)
            assert progress is not None
            assert progress.run_uid == worker.run_uid
        assert await client.ask("127.99.1.3") is None
    answers.close_all()
    assert answers.polls == 4


class _Closing(ProgressClient):
    async def aclose(self) -> None:
        await self.close()


def test_calls_are_those_of_the_namespace(tmp_path: Path) -> None:
    """Watches, other namespaces and a line that is still being written are left out; writes are
    without Events."""
    log = tmp_path / "audit.log"
    calls = ["get configmaps", "create jobs", "create events", "watch jobs", "list pods"]
    lines = [_entry(*call.split(), "runs") for call in [*calls, "create jobs"]]
    lines += [_entry("create", "jobs", "elsewhere")]
    log.write_text("".join(line + "\n" for line in lines) + '{"stage')
    counted = audit.calls(log, "runs")
    assert (counted.total, counted.writes, counted.events) == (5, 2, 1)
    assert counted.seconds == pytest.approx(1.25)


def _entry(verb: str, resource: str, namespace: str) -> str:
    return json.dumps(
        {
            "stage": "ResponseComplete",
            "verb": verb,
            "objectRef": {"resource": resource, "namespace": namespace},
            "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z",
            "stageTimestamp": "2026-01-01T00:00:00.250000Z",
        }
    )


def test_quantiles_of_what_came_in_between() -> None:
    """As PromQL has them: linear within a bucket; above the last edge, that edge."""
    infinity = float("inf")
    before = {0.1: 100.0, 1.0: 100.0, infinity: 100.0}
    seen = between(before, {0.1: 150.0, 1.0: 198.0, infinity: 200.0})
    assert quantile(seen, 0.5) == pytest.approx(0.1)
    assert quantile(seen, 0.75) == pytest.approx(0.1 + 0.9 * 25 / 48)
    assert quantile(seen, 0.99) == 1.0


def test_plain_job_has_the_shape_of_a_runs_job() -> None:
    """Of the operator's own Job all is kept but what the API server added and who owns it."""
    ours = {"daybreak.dev/run": "a"}
    added = {"batch.kubernetes.io/job-name": "a-1", "controller-uid": "1", "job-name": "a-1"}
    spec = {"completions": 4, "template": {"metadata": {"labels": ours | added}, "spec": {"x": 1}}}
    like = {"metadata": {"ownerReferences": [{}]}, "spec": spec | {"selector": {}}}
    made = plain_job("b", like)
    template = {"metadata": {"labels": ours}, "spec": {"x": 1}}
    assert made["metadata"] == {"name": "b-1", "labels": ours}
    assert made["spec"] == {"completions": 4, "template": template}
    assert contract.LABEL_RUN in made["metadata"]["labels"]
