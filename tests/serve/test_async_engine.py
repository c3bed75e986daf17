"""Many tasks share one engine: the same tokens as without, one batch, and no turn that was left leaves a trace.

No test sleeps: a job that blocks the owner thread holds it until all tasks have asked for what they want.
"""

import asyncio
import gc
import threading
from contextlib import asynccontextmanager
from random import Random

import pytest
from tiny import engine

from minstate import (
    BadMessage,
    BadValue,
    ContextOverflow,
    EngineClosed,
    EngineMisuse,
    Sampling,
    SessionBusy,
    SessionClosed,
    StaleMark,
)
from minstate.serve import AsyncEngine, AsyncSession

FREE = Sampling(ignore_eos=True)
OPTIONS = {"max_new_tokens": 9, "sampling": FREE}


def serving(**settings):
    return AsyncEngine(lambda: engine(num_pages=512, **settings))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@asynccontextmanager
async def held(e):
    """Inside, the owner thread takes in nothing; at the end, all that was asked for inside comes at once."""
    go_on = threading.Event()
    holding = asyncio.create_task(e.call(lambda _: go_on.wait()))
    try:
        await asyncio.sleep(0)  # the job is the first one now
        yield
        await asyncio.sleep(0)  # so are those of the tasks that were made inside
    finally:
        go_on.set()
        await holding


async def log_of(session):
    return await session.call(lambda one: (one.token_ids, one.messages))


def alone(*inputs, **options):
    session = engine(num_pages=512).open()
    return [session.send(each, **{**OPTIONS, **options}).token_ids for each in inputs][-1]


def test_tasks_share_forward_passes_and_get_the_tokens_that_each_gets_alone():
    async def main():
        async with serving() as e:
            sessions = [await e.open() for _ in range(8)]
            async with held(e):
                turns = [asyncio.create_task(one.send(f"question {i}", **OPTIONS)) for i, one in enumerate(sessions)]
            done = await asyncio.gather(*turns)
            await e.call(lambda owned: owned.check())
            return [turn.token_ids for turn in done], await e.call(lambda owned: owned.scheduler.steps)

    tokens, steps = asyncio.run(main())
    assert tokens == [alone(f"question {i}") for i in range(8)]
    e = engine(num_pages=512)
    for i in range(8):
        e.submit(e.open(), f"question {i}", **OPTIONS)
    e.run()
    assert steps == e.scheduler.steps < 20


def test_a_stream_gives_the_turns_tokens_one_by_one():
    async def main():
        async with serving() as e, await e.open() as session:
            stream = session.stream("hi", **OPTIONS)
            tokens = [token async for token in stream]
            assert stream.turn.token_ids == tuple(token.token_id for token in tokens) == alone("hi")
            assert "".join(token.text for token in tokens) == stream.turn.text
            assert (await session.send("more", **OPTIONS)).token_ids == alone("hi", "more")

    asyncio.run(main())


def test_marks_forks_histories_and_drift():
    async def main():
        async with serving() as e:
            session = await e.open([{"role": "system", "content": "Be."}])
            mark = await session.mark()
            turn = await session.send("hi", **OPTIONS)
            child = await session.fork()
            assert await log_of(child) == await log_of(session)
            history = (await log_of(session))[1]
            assert (await session.drift(history)).at > 20
            await session.rollback(mark)
            with pytest.raises(StaleMark):
                await child.rollback(mark)
            assert not (await session.sync([history[0], history[1]])).dropped
            assert (await session.send([], **OPTIONS)).token_ids == turn.token_ids
            await child.close()
            with pytest.raises(SessionClosed):
                await child.send("hi")
            await e.call(lambda owned: owned.check())

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"messages": 5}, BadMessage),
        ({"messages": "a", "max_new_tokens": 0}, BadValue),
        ({"messages": "a", "wibble": 0}, TypeError),
        ({"messages": "a" * 300}, ContextOverflow),
    ],
)
def test_an_error_is_raised_where_the_turn_is_awaited_and_the_session_goes_on(options, error):
    async def main():
        async with serving() as e:
            session = await e.open()
            with pytest.raises(error):
                await session.send(**options)
            with pytest.raises(error):
                async for _ in session.stream(**options):
                    raise AssertionError
            assert (await session.send("hi", **OPTIONS)).token_ids == alone("hi")

    asyncio.run(main())


def test_a_session_is_busy_until_its_last_token_is_taken():
    async def main():
        async with serving() as e:
            session = await e.open()
            stream = session.stream("hi", **OPTIONS)
            await anext(stream)
            for call in (session.mark, session.fork, lambda: session.send("no")):
                with pytest.raises(SessionBusy):
                    await call()
            await e.call(lambda owned: owned.run())  # the turn is done, and its tokens are not all taken
            with pytest.raises(SessionBusy):
                await session.mark()
            assert len([token async for token in stream]) == 8
            await session.mark()

    asyncio.run(main())


# ---- Turns that are left


@pytest.mark.parametrize("how", ["aclose", "async with", "dropped", "cancelled", "session closed"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_stream_that_is_left_leaves_the_session_as_it_was(how, is_done):
    async def main():
        async with serving() as e:
            session = await e.open()
            await session.send("hi", **OPTIONS)
            mark, before = await session.mark(), await log_of(session)
            count = 9 if is_done else 90
            stream = session.stream("more", max_new_tokens=count, sampling=FREE)
            await anext(stream)
            await e.call(lambda owned: owned.run() if is_done else owned.step())
            if how == "aclose":
                await stream.aclose()
            elif how == "async with":
                async with stream:
                    await anext(stream)
            elif how == "dropped":
                del stream
                gc.collect()
            elif how == "session closed":
                await session.close()
                if not is_done:
                    with pytest.raises(SessionClosed):
                        while True:
                            await anext(stream)
            else:
                reader = asyncio.create_task(read_first(stream))
                del stream
                await asyncio.sleep(0)
                reader.cancel()
                await asyncio.wait([reader])
                del reader
                gc.collect()
            if how != "session closed":
                assert await log_of(session) == before
                assert (await session.send("more", **OPTIONS)).token_ids == alone("hi", "more")
                await session.rollback(mark)
                assert await log_of(session) == before
            await e.call(lambda owned: owned.check())
            assert not await e.call(lambda owned: owned.scheduler.requests)

    async def read_first(stream):
        async for _ in stream:
            await asyncio.Event().wait()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(6))
def test_turns_that_are_cancelled_at_any_moment_leave_no_trace(seed):
    async def client(e, draw, number):
        session, taken = await e.open(tenant=str(number % 2)), []
        for place in range(6):
            text, before = f"{number} {place}", await log_of(session)
            task = asyncio.create_task(session.send(text, max_new_tokens=draw.randint(1, 9), sampling=FREE))
            rounds = draw.choice([0, 1, 2, 5, 20, 1000]) if 0 < place < 5 else 1000 * place
            for _ in range(rounds):
                if task.done():
                    break
                await e.call(lambda owned: owned.check())  # one round through the owner thread
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                assert await log_of(session) == before
            else:
                taken.append((text, task.result().token_ids))
        return taken, (await log_of(session))[0]

    async def main():
        async with serving(token_budget=16) as e:
            done = await asyncio.gather(*(client(e, Random(f"{seed} {number}"), number) for number in range(5)))
            await e.call(lambda owned: owned.check())
            assert not await e.call(lambda owned: owned.scheduler.requests)
        return done

    done = asyncio.run(main())
    assert 0 < sum(len(taken) for taken, _ in done) < 30
    for taken, log in done:  # what is left is what a session generates that was never disturbed
        session = engine(num_pages=512).open()
        for text, token_ids in taken:
            assert session.send(text, max_new_tokens=len(token_ids), sampling=FREE).token_ids == token_ids
        assert session.token_ids == log


def test_a_call_that_is_cancelled_in_time_does_nothing():
    async def main():
        async with serving() as e:
            made = []
            async with held(e):
                task = asyncio.create_task(e.call(made.append))
                await asyncio.sleep(0)
                task.cancel()
            await e.call(lambda _: None)
            assert task.cancelled() and not made

    asyncio.run(main())


# ---- Failures


def test_an_exception_in_one_turn_is_that_turns_own():
    class Broken(Exception):
        pass

    def make():
        e = engine(num_pages=512)
        forward = e.model.forward

        def fails_on_x(batch, attend):
            if ord("x") - ord("!") + 3 in batch.token_ids.tolist():
                raise Broken
            return forward(batch, attend)

        e.core.runner.model = Fake(e.model, fails_on_x)
        return e

    class Fake:
        def __init__(self, model, forward):
            self._model, self.forward = model, forward

        def __getattr__(self, name):
            return getattr(self._model, name)

    async def main():
        async with AsyncEngine(make) as e:
            good, bad = await e.open(), await e.open()
            async with held(e):
                turns = [asyncio.create_task(one.send(text, **OPTIONS)) for one, text in [(good, "a"), (bad, "x")]]
            done = await asyncio.gather(*turns, return_exceptions=True)
            assert done[0].token_ids == alone("a") and isinstance(done[1], Broken)
            assert await log_of(bad) == ([], [])
            await e.call(lambda owned: owned.check())

    asyncio.run(main())


def test_an_exception_that_is_no_turns_fault_fails_all_turns_and_later_calls():
    async def main():
        e = serving()
        sessions = [await e.open() for _ in range(3)]

        def breaks(owned):
            owned.scheduler.prepare = lambda: 1 / 0

        async with held(e):
            broken = asyncio.create_task(e.call(breaks))
            turns = [asyncio.create_task(one.send("hi", **OPTIONS)) for one in sessions]
        await broken
        done = await asyncio.gather(*turns, return_exceptions=True)
        assert [type(error) for error in done] == [ZeroDivisionError] * 3
        for call in (e.open, sessions[0].mark, lambda: sessions[1].send("hi")):
            with pytest.raises(EngineClosed, match="the engine has failed: ZeroDivisionError"):
                await call()
        await e.aclose()

    asyncio.run(main())


def test_an_engine_that_cannot_be_made_says_why():
    async def main():
        async with AsyncEngine.from_pretrained("/nowhere") as e:
            with pytest.raises(FileNotFoundError):
                await e.open()
            with pytest.raises(EngineClosed, match="nowhere"):
                await e.open()

    asyncio.run(main())


# ---- The end


def test_closing_waits_for_turns_that_are_under_way():
    async def main():
        e = serving()
        session, late = await e.open(), await e.open()
        async with held(e):
            turn = asyncio.create_task(session.send("hi", **OPTIONS))
            await asyncio.sleep(0)
            closing = asyncio.create_task(e.aclose())
            await asyncio.sleep(0)
            with pytest.raises(EngineClosed, match="is closed"):
                await late.send("hi")
        await closing
        assert (await turn).token_ids == alone("hi")
        await e.aclose()

    asyncio.run(main())


def test_closing_without_waiting_gives_turns_up():
    async def main():
        e = serving()
        session = await e.open()
        stream = session.stream("hi", max_new_tokens=200, sampling=FREE)
        await anext(stream)
        await e.aclose(drain=False)
        with pytest.raises(EngineClosed, match="during the turn"):
            while True:
                await anext(stream)

    asyncio.run(main())


def test_an_exception_in_the_block_does_not_wait_for_turns():
    async def main():
        async with serving() as e:
            session = await e.open()
            turn = asyncio.create_task(session.send("hi", max_new_tokens=200, sampling=FREE))
            await e.call(lambda owned: owned.check())
            try:
                raise ZeroDivisionError
            finally:
                main.turn = turn

    async def outer():
        with pytest.raises(ZeroDivisionError):
            await main()
        with pytest.raises(EngineClosed):
            await main.turn

    asyncio.run(outer())


def test_an_engine_that_was_never_used_has_no_thread_to_end():
    async def main():
        async with serving() as e:
            pass
        with pytest.raises(EngineClosed):
            await e.open()

    asyncio.run(main())


def test_another_event_loop_is_refused():
    async def other(e):
        await e.open()

    async def main():
        async with serving() as e:
            await e.open()
            with pytest.raises(EngineMisuse, match="event loop"):
                await asyncio.to_thread(lambda: asyncio.run(other(e)))

    asyncio.run(main())


def test_sessions_that_are_dropped_give_their_pages_back():
    async def main():
        async with serving(prefix_cache=False) as e:
            for _ in range(3):
                await (await e.open()).send("hi", **OPTIONS)
            gc.collect()
            free = await e.call(lambda owned: owned.check() or owned.pool.allocator.num_free)
            assert free == 512

    asyncio.run(main())


def test_a_session_is_closed_by_the_owner_thread_and_stays_open_while_its_turn_is_read():
    async def main():
        async with serving() as e:
            session, raw = await e.open(), []
            await session.call(raw.append)
            stream = session.stream("hi", **OPTIONS)
            del session
            assert len([token async for token in stream]) == 9 and not raw[0].closed
            async with held(e):
                del stream
                gc.collect()
                assert not raw[0].closed, "not by this thread"
            await e.call(lambda owned: owned.check())
            assert raw[0].closed

    asyncio.run(main())


def test_a_session_that_nobody_waits_for_any_more_is_closed():
    async def main():
        async with serving() as e:
            made = []
            session = await e.open()
            entered, go_on = threading.Event(), threading.Event()

            def slow(one):
                child = one.fork()
                made.append(child)
                entered.set()
                go_on.wait()
                return AsyncSession(e, child)

            task = asyncio.create_task(session.call(slow))
            await asyncio.to_thread(entered.wait)
            task.cancel()
            await asyncio.wait([task])
            go_on.set()
            await e.call(lambda _: None)
            gc.collect()
            await e.call(lambda owned: owned.check())
            assert made[0].closed

    asyncio.run(main())


def test_hundreds_of_small_turns():
    async def client(e, number):
        session = await e.open()
        tokens = [(await session.send(f"{number} {i}", max_new_tokens=2, sampling=FREE)).token_ids for i in range(4)]
        await session.close()
        return tokens

    async def main():
        async with serving() as e:
            done = await asyncio.gather(*(client(e, number % 10) for number in range(60)))
            await e.call(lambda owned: owned.check())
            return done

    done = asyncio.run(main())
    assert all(done[number] == done[number % 10] for number in range(60))
    for number in range(10):
        session = engine(num_pages=512).open()
        assert done[number] == [
            session.send(f"{number} {i}", max_new_tokens=2, sampling=FREE).token_ids for i in range(4)
        ]


def test_what_a_closed_engine_has_computed_is_on_the_disk_for_the_next_one(tmp_path):
    async def first_turn():
        async with serving(disk=tmp_path / "pages") as e:
            session = await e.open()
            return await session.send(token_ids=list(range(20, 61)), **OPTIONS)

    first, second = asyncio.run(first_turn()), asyncio.run(first_turn())
    assert (first.stats.promoted, second.stats.promoted) == (0, 40) and second.token_ids == first.token_ids
