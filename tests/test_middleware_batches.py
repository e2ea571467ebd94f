"""What a judge gives its workers: batches of what waits, taken without waiting for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event

import pytest

from guardrail import Conversation, Guard, load
from guardrail.backends.scripted import ScriptedBackend
from guardrail.errors import BackendError
from guardrail.prompting import Prompt
from guardrail.scoring import Logits
from guardrail.serving.failures import JudgeFailure, Reason
from guardrail.serving.judge import Judge, Limits, in_turns
from guardrail.types import Decision

_LONG = 30.0


class Held(ScriptedBackend):
    """Each batch waits until `free` is set; a text of `boom` fails its batch."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: Logits(0.0, -5.0, tuple(-5.0 for _ in prompt.taxonomy)))
        self.free = Event()
        self.begun = Event()
        self.batches: list[list[str]] = []

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        texts = [prompt.text for prompt in prompts]
        self.batches.append(texts)
        self.begun.set()
        assert self.free.wait(_LONG)
        if any("boom" in text for text in texts):
            raise RuntimeError("the device is lost")
        return super().logits(prompts, categories)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def asked(judge: Judge, guard: Guard, count: int, text: str = "hello") -> list[asyncio.Task[Decision]]:
    return [
        asyncio.get_running_loop().create_task(judge.judge(guard, Conversation.parse(f"{text} {number}")))
        for number in range(count)
    ]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(_LONG):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("workers", "waiting", "next_batch"), [(1, 3, 3), (1, 6, 4), (2, 4, 2), (2, 3, 2), (2, 12, 4)])
def test_what_waits_is_shared_among_the_workers(workers: int, waiting: int, next_batch: int) -> None:
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=4, workers=workers))

    async def run() -> None:
        tasks = asked(judge, guard, workers + waiting)
        await until(lambda: judge.waiting == waiting and len(backend.sizes) == workers)
        backend.free.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert backend.sizes[:workers] == [1] * workers
    assert max(backend.sizes[workers:]) == next_batch  # the first of those that were taken then
    assert sum(backend.sizes) == workers + waiting
    judge.close()


def test_a_worker_goes_on_while_the_event_loop_is_busy() -> None:
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=2))

    async def run() -> None:
        tasks = asked(judge, guard, 3)
        await until(lambda: judge.waiting == 2 and backend.sizes == [1])
        backend.begun.clear()
        backend.free.set()
        assert backend.begun.wait(_LONG), "the second batch waited for the event loop"
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert backend.sizes == [1, 2]
    judge.close()


def test_a_batch_that_fails_takes_no_other_along() -> None:
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=2))

    async def run() -> list[Decision | BaseException]:
        first = asked(judge, guard, 1)
        await until(lambda: backend.sizes == [1])
        rest = [*asked(judge, guard, 2, "boom"), *asked(judge, guard, 2)]
        await until(lambda: judge.waiting == 4)
        backend.free.set()
        return await asyncio.gather(*first, *rest, return_exceptions=True)

    good, bad, worse, *others = asyncio.run(run())
    assert all(isinstance(each, Decision) for each in (good, *others))
    assert all(isinstance(each, JudgeFailure) and each.reason is Reason.BACKEND for each in (bad, worse))
    judge.close()


def test_guards_do_not_share_a_batch_and_keep_their_turn() -> None:
    backend = Held()
    one, other = Guard(backend), Guard(backend, taxonomy=Guard(backend).taxonomy.select(["G1"]))
    judge = Judge(Limits(batch=8))

    async def run() -> None:
        tasks = asked(judge, one, 1, "first")
        await until(lambda: backend.sizes == [1])
        for number in range(2):
            tasks += [*asked(judge, one, 1, f"one {number}"), *asked(judge, other, 1, f"other {number}")]
        await until(lambda: judge.waiting == 4)
        backend.free.set()
        decisions = await asyncio.gather(*tasks)
        assert [len(decision.categories) for decision in decisions[1:]] == [len(one.taxonomy), 1] * 2

    asyncio.run(run())
    assert backend.sizes == [1, 2, 2]
    assert all("other" in text for text in backend.batches[2])
    judge.close()


def test_who_left_is_not_judged() -> None:
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=8))

    async def run() -> None:
        first, gone, last = (*asked(judge, guard, 1, "first"), *asked(judge, guard, 2, "next"))
        await until(lambda: judge.waiting == 2)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        backend.free.set()
        await asyncio.gather(first, last)

    asyncio.run(run())
    assert backend.sizes == [1, 1]
    judge.close()


def test_a_full_batch_does_not_wait_for_more() -> None:
    backend = Held()
    backend.free.set()
    guard = Guard(backend)
    judge = Judge(Limits(batch=3, gather=3600.0))

    async def run() -> None:
        await asyncio.gather(*asked(judge, guard, 6))

    asyncio.run(run())
    assert backend.sizes == [3, 3]
    judge.close()


def test_a_batch_waits_for_more() -> None:
    backend = Held()
    backend.free.set()
    guard = Guard(backend)
    judge = Judge(Limits(batch=8, gather=0.2))

    async def run() -> None:
        tasks = asked(judge, guard, 1)
        await asyncio.sleep(0)
        await asyncio.gather(*tasks, *asked(judge, guard, 2))

    asyncio.run(run())
    assert backend.sizes == [3]
    judge.close()


def test_nobody_is_left_waiting_when_the_judge_is_closed() -> None:
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=1))

    async def run() -> list[Decision | BaseException]:
        tasks = asked(judge, guard, 40)
        await until(lambda: judge.waiting == 39)
        closing = asyncio.get_running_loop().run_in_executor(None, judge.close)
        await until(lambda: judge._closed)
        backend.free.set()
        await closing
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(run())
    assert isinstance(first, Decision)
    assert all(isinstance(each, JudgeFailure) and each.reason is Reason.BACKEND for each in others)
    assert backend.sizes == [1]


def test_an_event_loop_that_ends_leaves_a_judge_for_the_next_one() -> None:
    """The worker outlives the loop, and what it judged has nobody to be told to."""
    backend = Held()
    guard = Guard(backend)
    judge = Judge(Limits(batch=1))

    async def leave() -> None:
        asked(judge, guard, 3)
        await until(lambda: judge.waiting == 2)

    async def come_back() -> Decision:
        backend.free.set()
        return await judge.judge(guard, Conversation.parse("hello again"))

    asyncio.run(leave())
    assert not asyncio.run(come_back()).flagged
    assert backend.sizes == [1, 1], "those that left were judged"
    judge.close()


def test_one_question_and_many_are_answered_in_order() -> None:
    async def ask(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        return number

    assert asyncio.run(in_turns([7], ask, 4)) == [7]
    assert asyncio.run(in_turns(range(11), ask, 4)) == list(range(11))
    assert asyncio.run(in_turns([], ask, 4)) == []


def test_how_many_batches_at_a_time() -> None:
    with load() as embedded:
        assert Limits().suited_to(embedded).workers == 2
        assert Limits(workers=5).suited_to(embedded).workers == 5
    assert Limits().suited_to(Guard(ScriptedBackend.load())).workers == 1
