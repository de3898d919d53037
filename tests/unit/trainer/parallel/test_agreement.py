"""What all ranks agree on: anybody's wish is everybody's, two steps later, at one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from math import isnan
from threading import Event
from typing import TypeVar

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from daybreak_trainer.evaluate.due import EvaluationDue
from daybreak_trainer.parallel.agreement import Agreed, StepAgreement, StepNumbers

T = TypeVar("T")
WORLD = 3
_TIMEOUT = timedelta(seconds=60)


class Ranks:
    """A gloo group whose ranks are threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(WORLD)
        store = dist.HashStore()
        self._groups = list(
            self._pool.map(
                lambda rank: dist.ProcessGroupGloo(store, rank, WORLD, _TIMEOUT), range(WORLD)
            )
        )

    def run(self, main: Callable[[int, StepAgreement], T]) -> list[T]:
        """What `main(rank, agreement)` returns on each rank; each says one number of its own."""
        return list(
            self._pool.map(lambda r: main(r, StepAgreement(self._groups[r], 1)), range(WORLD))
        )

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


@dataclass(frozen=True)
class Said:
    """What one rank says after a step."""

    stop: bool = False
    due: bool = False
    signature: int = 0
    loss_share: float = 0.0
    norm: float = 0.0
    finite: bool = True
    own: float = 0.0


FLOATS = st.floats(0, 10, width=32)
SAID = st.builds(
    Said,
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**64 - 1),
    FLOATS,
    FLOATS,
    st.booleans(),
    FLOATS,
)


def say(agreement: StepAgreement, step: int, said: Said) -> list[Agreed]:
    return agreement.exchange(
        step,
        stop=said.stop,
        checkpoint_due=said.due,
        signature=said.signature,
        numbers=StepNumbers(*map(torch.tensor, (said.loss_share, said.norm, said.finite))),
        own=(said.own,),
    )


def exchanged(ranks: Ranks, steps: list[list[Said]]) -> list[list[list[Agreed]]]:
    """For each rank what each exchange returned, and at last the drain."""

    def main(rank: int, agreement: StepAgreement) -> list[list[Agreed]]:
        found = [say(agreement, number, said[rank]) for number, said in enumerate(steps, start=1)]
        return [*found, agreement.drain()]

    return ranks.run(main)


@settings(max_examples=40)
@given(steps=st.lists(st.lists(SAID, min_size=WORLD, max_size=WORLD), min_size=1, max_size=5))
def test_all_ranks_read_the_same_two_steps_later(ranks: Ranks, steps: list[list[Said]]) -> None:
    """Anybody's stop and anybody's checkpoint count, signatures add up modulo 2^64, loss shares add
    up to the mean, a step counts where all took it, and each rank's own number has its place; the
    first two exchanges know nothing yet, and the drain gives the last two."""
    results = exchanged(ranks, steps)
    assert results[0] == results[1] == results[2]
    sizes = [len(found) for found in results[0]]
    assert sizes == [*(int(n > 2) for n in range(1, len(steps) + 1)), min(2, len(steps))]
    done = [agreed for found in results[0] for agreed in found]
    for number, (said, agreed) in enumerate(zip(steps, done, strict=True), start=1):
        assert agreed.step == number
        assert agreed.stop == any(s.stop for s in said)
        assert agreed.checkpoint_due == any(s.due for s in said)
        assert agreed.signature == sum(s.signature for s in said) % 2**64
        assert agreed.loss == pytest.approx(sum(s.loss_share for s in said), rel=1e-12)
        assert agreed.gradient_norm == said[0].norm
        assert agreed.finite == all(s.finite for s in said)
        assert agreed.by_rank == tuple((s.own,) for s in said)


def test_a_drain_gives_what_is_pending_once(ranks: Ranks) -> None:
    """Nothing before the first step, and the last step's result once."""

    def main(_: int, agreement: StepAgreement) -> list[list[Agreed]]:
        before = agreement.drain()
        say(agreement, 1, Said(due=True, signature=1, loss_share=0.5, norm=2.0, own=3.0))
        return [before, agreement.drain(), agreement.drain()]

    for before, once, again in ranks.run(main):
        assert (before, again) == ([], [])
        assert once == [Agreed(1, False, True, WORLD, 0.5 * WORLD, 2.0, True, ((3.0,),) * WORLD)]


def test_an_evaluation_that_is_due_runs_once(ranks: Ranks) -> None:
    """It is heard of two steps after it was said, and was said again until then: that is answered
    with it, and the next one comes when it is due anew. Steps take 1 s, an evaluation 10 s."""

    def main(rank: int, agreement: StepAgreement) -> list[int]:
        now, at = 0.0, list[int]()
        due = EvaluationDue(50.0, None, lambda: now)
        for step in range(1, 400):
            now += 1.0
            done = agreement.exchange(
                step,
                stop=False,
                checkpoint_due=False,
                signature=0,
                numbers=StepNumbers(*map(torch.tensor, (0.0, 0.0, True))),
                own=(0.0,),
                evaluation_due=rank == 0 and due.by_time(),
            )
            if due.after(step, done):
                now += 10.0
                at.append(step)
                due.took(step, 10.0)
        return at

    first, *others = ranks.run(main)
    assert first == [52, 52 + 192]
    assert others == [first] * (WORLD - 1)


def test_no_rank_waits_for_the_step_it_posts(ranks: Ranks) -> None:
    """A rank that is done with its step goes on while another still computes: it says its part of
    one step and of the next, which posts the first, and would wait at the third only."""
    ahead = Event()

    def main(rank: int, agreement: StepAgreement) -> bool:
        # The slow one computes until a quick one has come back from its second exchange.
        in_time = rank < WORLD - 1 or ahead.wait(timeout=30)
        say(agreement, 1, Said())
        say(agreement, 2, Said())
        ahead.set()
        agreement.drain()
        return in_time

    assert ranks.run(main) == [True] * WORLD


def test_a_loss_that_is_no_number_is_everybodys(ranks: Ranks) -> None:
    """NaN of one rank is the step's loss on all."""
    results = exchanged(ranks, [[Said(), Said(loss_share=float("nan")), Said()]])
    assert all(isnan(result[-1][0].loss) for result in results)


def test_the_number_of_own_values_is_fixed(ranks: Ranks) -> None:
    """Ranks that say more or less than they announced would read each other's places."""

    def main(_: int, agreement: StepAgreement) -> str:
        numbers = StepNumbers(*(torch.zeros(()) for _ in range(3)))
        with pytest.raises(ValueError) as raised:
            agreement.exchange(1, stop=False, checkpoint_due=False, signature=0, numbers=numbers)
        return str(raised.value)

    assert set(ranks.run(main)) == {"1 own values were announced, not 0"}
