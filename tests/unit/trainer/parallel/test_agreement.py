"""What all ranks agree on: anybody's wish is everybody's, one step later, at one step."""

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

from daybreak_trainer.parallel.agreement import Agreed, StepAgreement

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
        """What `main(rank, agreement)` returns on each rank."""
        return list(self._pool.map(lambda r: main(r, StepAgreement(self._groups[r])), range(WORLD)))

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


SAID = st.builds(
    Said, st.booleans(), st.booleans(), st.integers(0, 2**64 - 1), st.floats(0, 10, width=32)
)


def exchanged(ranks: Ranks, steps: list[list[Said]]) -> list[list[Agreed | None]]:
    """For each rank what each exchange returned, and at last the drain."""

    def main(rank: int, agreement: StepAgreement) -> list[Agreed | None]:
        found = [
            agreement.exchange(
                number,
                stop=said[rank].stop,
                checkpoint_due=said[rank].due,
                signature=said[rank].signature,
                loss_share=torch.tensor(said[rank].loss_share),
            )
            for number, said in enumerate(steps, start=1)
        ]
        return [*found, agreement.drain()]

    return ranks.run(main)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.lists(SAID, min_size=WORLD, max_size=WORLD), min_size=1, max_size=5))
def test_all_ranks_read_the_same_one_step_later(ranks: Ranks, steps: list[list[Said]]) -> None:
    """Anybody's stop and anybody's checkpoint count, signatures add up modulo 2^64, loss shares add
    up to the mean; the first exchange knows nothing yet, and the drain gives the last."""
    results = exchanged(ranks, steps)
    assert results[0] == results[1] == results[2]
    assert results[0][0] is None
    for number, (said, agreed) in enumerate(zip(steps, results[0][1:], strict=True), start=1):
        assert agreed is not None
        assert agreed.step == number
        assert agreed.stop == any(s.stop for s in said)
        assert agreed.checkpoint_due == any(s.due for s in said)
        assert agreed.signature == sum(s.signature for s in said) % 2**64
        assert agreed.loss == pytest.approx(sum(s.loss_share for s in said), rel=1e-12)


def test_a_drain_gives_what_is_pending_once(ranks: Ranks) -> None:
    """Nothing before the first step, and the last step's result once."""

    def main(_: int, agreement: StepAgreement) -> list[Agreed | None]:
        before = agreement.drain()
        agreement.exchange(
            1, stop=False, checkpoint_due=True, signature=1, loss_share=torch.tensor(0.5)
        )
        return [before, agreement.drain(), agreement.drain()]

    for before, once, again in ranks.run(main):
        assert (before, again) == (None, None)
        assert once == Agreed(1, False, True, WORLD, 0.5 * WORLD)


def test_no_rank_waits_for_the_step_it_posts(ranks: Ranks) -> None:
    """A rank that is done with its step goes on while another still computes: it posts, and waits
    one step later only."""
    posted = Event()

    def main(rank: int, agreement: StepAgreement) -> bool:
        # The slow one computes until a quick one has come back from its exchange.
        in_time = rank < WORLD - 1 or posted.wait(timeout=30)
        agreement.exchange(
            1, stop=False, checkpoint_due=False, signature=0, loss_share=torch.tensor(0.0)
        )
        posted.set()
        agreement.drain()
        return in_time

    assert ranks.run(main) == [True] * WORLD


def test_a_loss_that_is_no_number_is_everybodys(ranks: Ranks) -> None:
    """NaN of one rank is the step's loss on all."""
    results = exchanged(ranks, [[Said(), Said(loss_share=float("nan")), Said()]])
    assert all(result[1] is not None and isnan(result[1].loss) for result in results)
