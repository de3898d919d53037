"""The leader election, in virtual time, on a simulated API server: never two leaders, and soon one.

Each operator has a clock on its wall that may be wrong by hours; requests can be slow, lost on the
way there or on the way back, or hang.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from virtual_time import run

from daybreak_operator.leader import (
    Elector,
    LeadershipLostError,
    LeaseConflictError,
    LeaseRecord,
    Timing,
)

TIMING = Timing()
FAILOVER = 20.0


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Server:
    """Holds one Lease as an API server does."""

    lease: LeaseRecord | None = None
    version: int = 0

    def create(self, record: LeaseRecord) -> LeaseRecord:
        if self.lease is not None:
            raise LeaseConflictError
        return self._store(record)

    def replace(self, record: LeaseRecord) -> LeaseRecord:
        if self.lease is None or self.lease.version != record.version:
            raise LeaseConflictError
        return self._store(record)

    def _store(self, record: LeaseRecord) -> LeaseRecord:
        self.version += 1
        self.lease = replace(record, version=str(self.version))
        return self.lease


@dataclass
class Wire:
    """An operator's connection to the server: a `LeaseStore`."""

    server: Server
    seconds: float = 0.01
    cut: bool = False
    """Requests hang until their caller gives up."""
    dice: Random | None = None
    """Loses requests and answers."""
    lose_answers: int = 0
    """Of so many writes the answer does not arrive."""

    async def read(self) -> LeaseRecord | None:
        await self._travel()
        found = self.server.lease
        await self._travel()
        return found

    async def create(self, record: LeaseRecord) -> LeaseRecord:
        await self._travel()
        return await self._answer(self.server.create(record))

    async def replace(self, record: LeaseRecord) -> LeaseRecord:
        await self._travel()
        return await self._answer(self.server.replace(record))

    async def _answer(self, record: LeaseRecord) -> LeaseRecord:
        if self.lose_answers:
            self.lose_answers -= 1
            raise ConnectionResetError("the answer is lost")
        await self._travel()
        return record

    async def _travel(self) -> None:
        if self.cut:
            await asyncio.sleep(3600)
        if self.dice is not None:
            await asyncio.sleep(self.dice.choice((0.01, 0.1, 1.0, 3.0)))
            if self.dice.random() < 0.15:
                raise ConnectionResetError("lost on the way")
        await asyncio.sleep(self.seconds)


@dataclass
class Operator:
    """An elector and what is to be known of its life."""

    server: Server
    name: str
    skew: timedelta = timedelta()
    wire: Wire = field(init=False)
    elector: Elector = field(init=False)
    led: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    task: asyncio.Task[None] = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Wire(self.server)
        self.elector = Elector(self.wire, self.name, TIMING, lambda: datetime.now(UTC) + self.skew)
        self.task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        await self.elector.acquire()
        self.led.append(now())
        try:
            await self.elector.hold()
        except LeadershipLostError:
            self.lost.append(now())

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


async def until_one_leads(*operators: Operator) -> Operator:
    while True:
        for operator in operators:
            if operator.elector.leading:
                return operator
        await asyncio.sleep(0.1)


async def two(server: Server) -> tuple[Operator, Operator]:
    """The one that leads, and the one that stands by, after a while."""
    first, second = Operator(server, "a"), Operator(server, "b")
    leader = await until_one_leads(first, second)
    await asyncio.sleep(60)
    assert leader.elector.leading
    return leader, second if leader is first else first


def test_one_of_two_leads_and_goes_on_leading() -> None:
    """They ask at the same moment; an hour later it is still the same one."""

    async def story() -> None:
        server = Server()
        leader, other = await two(server)
        for _ in range(3600):
            await asyncio.sleep(1)
            assert leader.elector.leading
            assert not other.elector.leading
        assert server.lease is not None
        assert (server.lease.holder, server.lease.transitions) == (leader.name, 0)

    run(story())


def test_when_the_leader_dies_another_leads_in_time() -> None:
    """And not before the dead one's time is over."""

    async def story() -> None:
        for wait in (0.0, 0.5, 1.0, 1.5, 1.9):
            leader, other = await two(Server())
            await asyncio.sleep(wait)
            died, until = now(), leader.elector.leads_until()
            await leader.kill()
            await until_one_leads(other)
            assert until < other.led[0] < died + FAILOVER
            await other.kill()

    run(story())


@pytest.mark.parametrize("hours", [-48, 0, 48])
def test_clocks_on_the_wall_do_not_matter(hours: int) -> None:
    """Of a Lease that was renewed two days ago or will be in two days, all that counts is whether
    it is being renewed."""

    async def story() -> None:
        server = Server()
        leader = Operator(server, "a", timedelta(hours=hours))
        await until_one_leads(leader)
        other = Operator(server, "b")
        await asyncio.sleep(300)
        assert leader.elector.leading
        assert not other.led
        died = now()
        await leader.kill()
        await until_one_leads(other)
        assert now() - died < FAILOVER

    run(story())


def test_a_leader_that_is_cut_off_stops_before_another_leads() -> None:
    """It stops by itself, at its deadline, though its requests hang and nobody tells it so."""

    async def story() -> None:
        leader, other = await two(Server())
        began = now()
        leader.wire.cut = True
        await until_one_leads(other)
        assert not leader.elector.leading
        assert leader.lost[0] <= began + TIMING.renew_deadline_seconds
        assert other.led[0] - leader.lost[0] >= 4.5
        assert other.led[0] - began < FAILOVER

    run(story())


def test_a_renewal_whose_answer_is_lost_is_found_to_be_ours() -> None:
    """The next one reads the Lease first, and the leader stays."""

    async def story() -> None:
        leader, other = await two(Server())
        for _ in range(20):
            leader.wire.lose_answers = 2
            await asyncio.sleep(15)
            assert leader.elector.leading
        assert not leader.lost
        assert not other.led

    run(story())


def test_a_first_write_whose_answer_is_lost_locks_nobody_out() -> None:
    """The Lease is there and names us: the next attempt takes it."""

    async def story() -> None:
        operator = Operator(Server(), "a")
        operator.wire.lose_answers = 1
        began = now()
        await until_one_leads(operator)
        assert now() - began < 5

    run(story())


def test_who_gives_the_lease_back_is_followed_at_once() -> None:
    """Also when a renewal was under way."""

    async def story() -> None:
        for wait in (0.0, 1.98, 1.985, 1.99, 2.0, 2.01, 2.015):
            leader, other = await two(Server())
            await asyncio.sleep(wait)
            await leader.kill()
            await leader.elector.release()
            assert not leader.elector.leading
            released = now()
            await until_one_leads(other)
            assert now() - released < 2.5
            await other.kill()

    run(story())


def test_a_lease_that_another_has_written_ends_the_leadership_at_once() -> None:
    """Somebody took it by hand: the next renewal is refused, and nothing is fought over."""

    async def story() -> None:
        server = Server()
        leader, _ = await two(server)
        assert server.lease is not None
        server.replace(replace(server.lease, holder="somebody"))
        began = now()
        while not leader.lost:
            await asyncio.sleep(0.1)
        assert now() - began < 3

    run(story())


def test_a_lease_that_is_deleted_makes_no_second_leader() -> None:
    """Its holder makes it again; who stands by waits as if it were still there."""

    async def story() -> None:
        server = Server()
        leader, other = await two(server)
        for _ in range(10):
            server.lease = None
            await asyncio.sleep(7.3)
        assert leader.elector.leading
        assert not other.led
        server.lease = None
        await leader.kill()
        died = now()
        await until_one_leads(other)
        assert now() - died < FAILOVER

    run(story())


@pytest.mark.parametrize("seed", range(6))
def test_never_two_leaders_whatever_the_network_does(seed: int) -> None:
    """Three operators, half an hour: slow and lost requests, partitions, deaths, and clocks that
    are wrong. Who loses the Lease is started anew. Never do two lead, and mostly one does."""

    async def story() -> None:
        dice, server = Random(seed), Server()

        def start(n: int) -> Operator:
            operator = Operator(
                server, f"{n}-{dice.random()}", timedelta(hours=dice.uniform(-30, 30))
            )
            operator.wire.dice = Random(dice.random())
            return operator

        operators = [start(n) for n in range(3)]
        somebody = 0
        for _ in range(18_000):
            await asyncio.sleep(0.1)
            leading = [o for o in operators if o.elector.leading]
            assert len(leading) <= 1
            somebody += len(leading)
            for n, operator in enumerate(operators):
                if dice.random() < 0.002:
                    operator.wire.cut = not operator.wire.cut
                if operator.task.done() or dice.random() < 0.0005:
                    await operator.kill()
                    operators[n] = start(n)
        assert somebody > 3_000
        assert server.lease is not None
        assert server.lease.transitions > 2

    run(story())
