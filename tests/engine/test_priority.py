"""Who listens comes first: a waiting sequence takes the place of one of lower priority."""

from __future__ import annotations

from youtu_llm.engine.page_pool import PagePool
from youtu_llm.engine.scheduler import Limits, Plan, Scheduler
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import PAGE_SIZE, SamplingParams


def sequence(id: str, length: int, priority: int) -> Sequence:
    ids = [ord(id)] * length
    params = SamplingParams(max_new_tokens=4)
    return Sequence(id, ids, params, arrival_s=0.0, priority=priority)


def step(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan()
    done = {s: 1 for s, length in plan.chunks.items() if length == s.num_uncomputed}
    scheduler.commit(plan, done)
    return plan


def ends(scheduler: Scheduler, sequences: list[Sequence]) -> list[str]:
    """Their ids in the order in which they end."""
    ended: list[str] = []
    while scheduler.has_work:
        step(scheduler)
        ended += [s.id for s in sequences if not scheduler.knows(s.id) and s.id not in ended]
    return ended


def test_a_voice_turn_takes_the_place_of_a_batch_job_and_its_pages_are_parked() -> None:
    scheduler = Scheduler(PagePool(12), Limits(1, 512, 2048))
    batch = sequence("b", 2 * PAGE_SIZE + 10, priority=-1)
    scheduler.add(batch)
    step(scheduler)
    computed = batch.num_computed
    assert computed == 512
    voice, late = sequence("v", 20, priority=1), sequence("l", 20, priority=-1)
    scheduler.add(late)
    scheduler.add(voice)
    assert set(step(scheduler).chunks) == {voice}
    assert ends(scheduler, [batch, voice, late]) == ["v", "b", "l"]
    assert batch.num_generated == 4
    assert scheduler.num_preempted == 1
    scheduler.pool.check()


def test_pages_are_taken_from_the_lowest_priority() -> None:
    scheduler = Scheduler(PagePool(4), Limits(4, 2048, 1024, prefix_cache=False))
    low, high = sequence("l", 3 * PAGE_SIZE, priority=-1), sequence("h", 600, priority=1)
    scheduler.add(low)
    step(scheduler)
    scheduler.add(high)
    assert set(step(scheduler).chunks) == {high}
    assert ends(scheduler, [low, high]) == ["h", "l"]
    scheduler.pool.check()


def test_equals_do_not_displace_each_other() -> None:
    scheduler = Scheduler(PagePool(12), Limits(1, 512, 2048))
    first, second = sequence("1", 20, priority=0), sequence("2", 20, priority=0)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    assert ends(scheduler, [first, second]) == ["1", "2"]
    assert scheduler.num_preempted == 0
