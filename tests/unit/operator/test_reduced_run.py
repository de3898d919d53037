"""A run that goes on with fewer nodes than it wants, and whose user changes what it may have."""

from __future__ import annotations

import pytest
from simulated_history import History, spec_of


def reduced(cooldown: str = "1m", nodes: int = 2, lost: int = 1) -> History:
    """A run that trains on what is left of its nodes."""
    workers = {"nodes": nodes, "minNodes": 1}
    made = History(spec_of(workers=workers, scaleCooldown=cooldown), nodes, readable_nodes=False)
    made.operator.advance(30)
    for number in range(lost):
        made.node_down(nodes - 1 - number)
    while made.status["phase"] != "Running" or made.status["attempt"] == 1:
        made.operator.advance(1)
    assert made.status["currentAttempt"]["nodes"] == nodes - lost
    return made


@pytest.mark.parametrize("cooldown", ["1s", "1h"])
def test_a_raised_min_nodes_holds_for_the_next_attempt(cooldown: str) -> None:
    """Whether or not the size changed lately."""
    made = reduced(cooldown)
    made.api.edit(workers={"image": "i", "nodes": 2, "minNodes": 2})
    made.pod_ends((0, 75))
    made.operator.advance(20)
    assert [body["spec"]["parallelism"] for body in made.api.created][-1] == 2


def test_a_run_does_not_grow_to_less_than_its_min_nodes() -> None:
    """One more node is free, and minNodes asks for two more."""
    made = reduced(nodes=3, lost=2)
    made.api.edit(workers={"image": "i", "nodes": 3, "minNodes": 3})
    made.cluster.readable_nodes = True
    made.operator.advance(60)
    attempt = made.status["attempt"]
    made.node_up(1)
    made.operator.advance(40)
    assert made.status["attempt"] == attempt
    made.node_up(2)
    made.operator.advance(40)
    assert made.status["currentAttempt"]["nodes"] == 3


def test_a_size_above_an_accepted_one_is_a_request() -> None:
    """Whether nodes are free is not known; the run goes to the new size as any run does."""
    made = reduced("10s")
    made.scale(1)
    made.operator.advance(10)
    assert made.status["scaling"]["reason"] == "Requested"
    made.node_up(1)
    made.scale(2)
    made.operator.advance(40)
    assert [body["spec"]["parallelism"] for body in made.api.created] == [2, 2, 1, 2]
