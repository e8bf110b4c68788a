"""The engine's thread: streams end, whatever happens, and what nobody waits for is cancelled."""

import asyncio

import pytest

from stepaudio_jax.inference import Finished, QueueFull, Request, SamplingParams
from stepaudio_jax.serving.runner import Draining, EngineError, Runner
from stepaudio_jax.text import Conversation, human
from tests.serving.fakes import FakeEngine


def prepared(engine: FakeEngine, tokens: int = 5):
    return engine.prepare(Request(Conversation((human("Hi"),)), SamplingParams(max_new_tokens=tokens)))


def check(test, **options):
    """Runs a coroutine function of (engine, started runner)."""

    async def main():
        engine = FakeEngine(**options)
        runner = Runner(engine)  # type: ignore[arg-type]
        runner.start()
        try:
            await asyncio.wait_for(test(engine, runner), 600)
        finally:
            await runner.close()

    asyncio.run(main())


async def eventually(condition):
    end = asyncio.get_running_loop().time() + 5
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.002)


async def count(stream) -> int:
    return sum([not isinstance(event, Finished) async for event in stream])


def test_each_stream_gets_its_own_events_in_order():
    async def test(engine, runner):
        asked = [prepared(engine, tokens) for tokens in range(1, 31)]
        streams = [runner.stream(each) for each in asked]
        assert await asyncio.gather(*map(count, streams)) == list(range(1, 31))
        assert runner.running == 0 and engine.cancelled == []

    check(test)


def test_requests_that_began_together_share_a_stream():
    async def test(engine, runner):
        together = [prepared(engine, 3), prepared(engine, 6)]
        stream = await runner.submit(together)
        done = [event.request_id async for event in stream if isinstance(event, Finished)]
        assert done == [each.request.id for each in together]

    check(test)


@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_a_stream_that_is_left_frees_its_row(how):
    async def test(engine, runner):
        async def listen():
            async for _ in runner.stream(prepared(engine, 10**6)):
                if how == "left":
                    break

        task = asyncio.create_task(listen())
        if how == "cancelled":
            await eventually(lambda: runner.stats.running == 1)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: not engine.has_work and len(engine.cancelled) == 1)
        await eventually(lambda: runner.stats.pages_used == 0)
        assert runner.running == 0

    check(test)


def test_a_full_queue_refuses_all_of_a_request_or_none():
    async def test(engine, runner):
        running = await runner.submit([prepared(engine, 10**6)])
        await eventually(lambda: runner.stats.running == 1)
        with pytest.raises(QueueFull):
            await runner.submit([prepared(engine), prepared(engine), prepared(engine)])
        await eventually(lambda: runner.stats.waiting == 0)
        running.close()
        assert await count(runner.stream(prepared(engine))) == 5

    check(test, max_rows=1, max_waiting=2, seconds=0.001)


def test_a_failed_step_fails_what_runs_and_nothing_after():
    async def test(engine, runner):
        streams = [await runner.submit([prepared(engine, 10**6)]) for _ in range(3)]
        engine.failing = 1
        for stream in streams:
            with pytest.raises(EngineError, match="failed at a step") as raised:
                await count(stream)
            assert "secret" not in str(raised.value)
        await eventually(lambda: runner.stats.pages_used == 0)
        assert runner.failures == 1 and runner.alive
        assert await count(runner.stream(prepared(engine))) == 5

    check(test, seconds=0.001)


def test_when_the_engine_dies_nobody_waits_for_ever():
    async def test(engine, runner):
        stream = await runner.submit([prepared(engine, 10**6)])
        engine.hurt, engine.failing = True, 1
        with pytest.raises(EngineError):
            await count(stream)
        await eventually(lambda: not runner.alive)
        with pytest.raises(EngineError):
            await runner.submit([prepared(engine)])

    check(test)


def test_an_engine_that_only_fails_counts_as_dead():
    async def test(engine, runner):
        engine.failing = 10
        for _ in range(3):
            with pytest.raises(EngineError):
                await count(runner.stream(prepared(engine)))
        await eventually(lambda: not runner.alive)

    check(test)


def test_draining_lets_what_runs_end():
    async def test(engine, runner):
        stream = await runner.submit([prepared(engine, 30)])
        draining = asyncio.create_task(runner.drain(600))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await runner.submit([prepared(engine)])
        assert await count(stream) == 30
        await asyncio.wait_for(draining, 600)

    check(test, seconds=0.002)


def test_draining_cancels_what_does_not_end():
    async def test(engine, runner):
        stream = await runner.submit([prepared(engine, 10**6)])
        await runner.drain(0.05)
        with pytest.raises(Draining):
            await count(stream)
        await eventually(lambda: not engine.has_work)

    check(test, seconds=0.001)
