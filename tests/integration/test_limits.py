"""Rate limits on a real Redis, of several event loops that know of each other only by it, on a server that enforces."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from assay.embedded import RedisServer
from assay.errors import JudgeError
from assay.judges import JudgeSettings, build_judge
from assay.limits import _FRESH_SECONDS, Limits, endpoint_id
from assay.pipeline import Judges, evaluate
from assay.records import Failure
from assay.testing import FakeJudgeServer
from judging import a_record, ordinal

KEY = "a secret of this test"


@pytest.fixture
def limits(redis_url: str) -> Iterator[tuple[asyncio.Runner, Limits]]:
    with asyncio.Runner() as runner:
        made = Limits(url=redis_url, queue="q", wait_seconds=0.0)
        yield runner, made
        runner.run(made.aclose())


async def takes(limits: Limits, times: int) -> list[float]:
    """Delay told at each try; 0 where the turn came at once."""
    delays = []
    for _ in range(times):
        try:
            await limits.take("e", 10)
        except JudgeError as error:
            delays.append(error.retry_after_seconds or 0.0)
        else:
            delays.append(0.0)
    return delays


def test_without_a_limit_nobody_waits(limits: tuple[asyncio.Runner, Limits]) -> None:
    runner, made = limits
    assert runner.run(takes(made, 50)) == [0.0] * 50


def test_one_call_of_many_asks_whether_there_is_still_no_limit(redis_url: str) -> None:
    async def run() -> None:
        one, other = (Limits(url=redis_url, queue="q", wait_seconds=0.0) for _ in range(2))
        with redis.Redis.from_url(redis_url) as reader:
            await takes(one, 1)
            await asyncio.sleep(_FRESH_SECONDS)
            before = asked(reader)
            assert await asyncio.gather(*(takes(one, 1) for _ in range(20))) == [[0.0]] * 20
            assert asked(reader) == before + 1
            # A limit that has come meanwhile is seen by the next that asks, and from then on all of them do.
            await other.learn("e", {"x-ratelimit-limit-requests": "6"})
            await asyncio.sleep(_FRESH_SECONDS)
            await takes(one, 1)
            assert min((await asyncio.gather(*(takes(one, 1) for _ in range(20))))[1:]) > [0.0]
        await one.aclose()
        await other.aclose()

    def asked(reader: redis.Redis) -> int:
        return int(reader.info("commandstats")["cmdstat_evalsha"]["calls"])

    asyncio.run(run())


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_configured_limit_is_shared(redis_url: str, unit: str) -> None:
    async def run() -> None:
        given = {"requests_per_minute": 6.0} if unit == "requests" else {"tokens_per_minute": 60.0}
        first, second = (Limits(url=redis_url, queue="q", wait_seconds=0.0, **given) for _ in range(2))
        assert await takes(first, 1) == [0.0]
        (delay,) = await takes(second, 1)
        assert 5 < delay <= 10.4
        await first.aclose()
        await second.aclose()

    asyncio.run(run())


def test_what_headers_tell_one_holds_for_all(redis_url: str) -> None:
    async def run() -> None:
        first, second = (Limits(url=redis_url, queue="q", wait_seconds=0.0) for _ in range(2))
        await first.learn("e", {"x-ratelimit-limit-requests": "6"})
        assert await takes(first, 1) == [0.0]
        (delay,) = await takes(second, 1)
        assert 5 < delay <= 10.4
        await first.aclose()
        await second.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("own", [None, 600.0])
@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_limit_that_redis_has_forgotten_is_learned_again(redis_url: str, unit: str, own: float | None) -> None:
    headers = {f"x-ratelimit-limit-{unit}": "6"}

    async def run() -> None:
        limits = Limits(url=redis_url, queue="q", wait_seconds=5.0, **{f"{unit}_per_minute": own})
        with redis.Redis.from_url(redis_url) as reader:
            await limits.learn("e", headers)
            assert await takes(limits, 1) == [0.0]
            before = asked(reader)
            await limits.learn("e", headers)
            assert asked(reader) == before, "it is no news"
            reader.delete("assay:q:limit:e")
            assert await takes(limits, 1) == [0.0]
            await limits.learn("e", headers)
            assert reader.hget("assay:q:limit:e", unit) == b"6"
            assert await takes(limits, 1) == [0.0]
            assert (await takes(limits, 1))[0] > 5
        await limits.aclose()

    def asked(reader: redis.Redis) -> int:
        return int(reader.info("commandstats")["cmdstat_evalsha"]["calls"])

    asyncio.run(run())


def test_a_refusal_pauses_all_and_teaches_a_limit(redis_url: str) -> None:
    async def run() -> None:
        first, second = (Limits(url=redis_url, queue="q", wait_seconds=0.0) for _ in range(2))
        await takes(first, 60)
        for _ in range(20):
            await first.limited("e", 30.0)
        (delay,) = await takes(second, 1)
        assert 25 < delay <= 30
        reader = redis.Redis.from_url(redis_url)
        (key,) = reader.keys("assay:q:limit:*")
        assert float(reader.hget(key, "cut")) >= 1
        reader.hset(key, "pause", 0)
        reader.close()
        assert await takes(second, 1) == [0.0]
        assert (await takes(second, 1))[0] > 0
        await first.aclose()
        await second.aclose()

    asyncio.run(run())


def test_a_refusal_now_and_then_is_no_limit(redis_url: str) -> None:
    """Whoever learned from each of them would ask ever less, and who waited for each would ask next to nothing."""

    async def run() -> None:
        limits = Limits(url=redis_url, queue="q", wait_seconds=0.0)
        for _ in range(20):
            assert await takes(limits, 30) == [0.0] * 30
            for _ in range(3):
                await limits.limited("e", 30.0)
        assert await takes(limits, 50) == [0.0] * 50
        await limits.aclose()
        with redis.Redis.from_url(redis_url) as reader:
            (key,) = reader.keys("assay:q:limit:*")
            assert not {b"cut", b"pause", b"share"} & set(reader.hgetall(key))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("calls", "refused", "pauses", "teaches"),
    [
        (1, 1, True, False),
        (2, 1, False, False),
        (2, 2, True, False),
        (3, 3, True, True),
        (10, 3, False, False),
        (10, 4, True, True),
        (100, 17, False, False),
        (100, 18, True, True),
    ],
)
def test_how_many_refusals_of_how_many_calls_pause_all_and_teach_a_limit(
    redis_url: str, calls: int, refused: int, pauses: bool, teaches: bool
) -> None:
    """A tenth, and 2.5 standard deviations of what chance adds to it."""

    async def run() -> None:
        limits, other = (Limits(url=redis_url, queue="q", wait_seconds=0.0) for _ in range(2))
        await takes(limits, calls)
        for _ in range(refused):
            await limits.limited("e", 30.0)
        (delay,) = await takes(other, 1)
        assert (delay > 25) is pauses
        with redis.Redis.from_url(redis_url) as reader:
            (key,) = reader.keys("assay:q:limit:*")
            assert (reader.hget(key, "cut") is not None) is teaches
        await limits.aclose()
        await other.aclose()

    asyncio.run(run())


def test_after_an_outage_the_few_calls_of_its_minute_are_taken_for_no_limit(redis_url: str) -> None:
    """Refusals by chance are a large share of few calls."""

    async def run() -> None:
        made = Limits(url=redis_url, queue="q", wait_seconds=0.0)
        with redis.Redis.from_url(redis_url) as reader:
            for _ in range(5):
                await takes(made, 4)
                await made.limited("e", 0.0)
                (key,) = reader.keys("assay:q:limit:*")
                assert reader.hget(key, "cut") is None
                # So much later that what was lately has faded.
                reader.hset(key, "lately_at", float(reader.hget(key, "lately_at")) - 60)
        assert await takes(made, 200) == [0.0] * 200
        await made.aclose()

    asyncio.run(run())


def test_while_redis_is_away_the_last_known_limit_holds(tmp_path: object) -> None:
    async def run() -> None:
        with RedisServer(tmp_path) as server:  # type: ignore[arg-type]
            made = Limits(url=server.url, queue="q", wait_seconds=0.0, requests_per_minute=6, timeout_seconds=0.5)
            assert await takes(made, 1) == [0.0]
        first, second = await takes(made, 2)
        assert first == 0.0
        assert second > 5
        await made.aclose()

    asyncio.run(run())


def load(url: str, base_url: str, ends: float, *, shared: bool) -> None:
    """Judges until `ends`, 16 at once."""

    async def run() -> None:
        settings = JudgeSettings(engine="openai", model="fake", base_url=base_url, api_key=KEY)
        made = Limits(url=url, queue="q", wait_seconds=5.0) if shared else None
        judges = Judges.build([ordinal()], settings, limits=made)

        async def one_line(number: int) -> None:
            index = 0
            while time.monotonic() < ends:
                index += 1
                record = a_record(record_id=f"r-{number}-{index}")
                (evaluation,) = await evaluate(record, [ordinal()], judges)
                outcome = evaluation.outcome
                if isinstance(outcome, Failure) and outcome.kind == "rate_limited":
                    await asyncio.sleep(min(0.5, outcome.retry_after_seconds or 0.5))

        await asyncio.gather(*(one_line(number) for number in range(16)))
        await judges.aclose()

    asyncio.run(run())


def run_load(url: str, server: FakeJudgeServer, *, shared: bool, seconds: float) -> tuple[float, float]:
    """Share of calls that were refused, and answered calls a second, in the last third, when all is learned."""
    began = time.monotonic()
    threads = [
        threading.Thread(target=load, args=(url, server.base_url, began + seconds), kwargs={"shared": shared})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds * 2 / 3)
    refused, calls = server.traffic.played["rate_limited"], server.traffic.calls
    time.sleep(seconds / 3)
    refused, calls = server.traffic.played["rate_limited"] - refused, server.traffic.calls - calls
    for thread in threads:
        thread.join(30)
    return refused / max(1, calls), (calls - refused) / (seconds / 3)


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_after_learning_next_to_no_call_is_refused(redis_url: str, unit: str) -> None:
    seconds = float(os.environ.get("ASSAY_E2E_LIMIT_SECONDS", "4.5"))
    bound = {"requests_per_minute": 600} if unit == "requests" else {"tokens_per_minute": 300_000}
    with FakeJudgeServer(retry_after_seconds=0.5, limit_window_seconds=1.0, **bound) as server:  # type: ignore[arg-type]
        load(redis_url, server.base_url, time.monotonic() + 0.1, shared=False)  # imports take their time
        today, _ = run_load(redis_url, server, shared=False, seconds=seconds / 3)
        learned, rate = run_load(redis_url, server, shared=True, seconds=seconds)
    print(f"{unit}: refused {today:.1%} without, {learned:.1%} with limits; {rate:.2f} calls a second")
    # A short run on a busy machine is a dozen calls: only a long one, by hand, can show that next to none is refused.
    assert learned < (0.1 if "ASSAY_E2E_LIMIT_SECONDS" in os.environ else 0.6)
    found = redis.Redis.from_url(redis_url)
    keys = found.keys("assay:q:limit:*")
    assert keys == [f"assay:q:limit:{endpoint_id(server.base_url, 'fake')}".encode()]
    assert int(found.hget(keys[0], unit)) == bound[f"{unit}_per_minute"]
    assert KEY not in str(found.hgetall(keys[0]))
    found.close()


def test_a_judge_that_would_wait_too_long_makes_no_call(redis_url: str) -> None:
    async def run(base_url: str) -> list[object]:
        settings = JudgeSettings(engine="openai", model="fake", base_url=base_url)
        made = Limits(url=redis_url, queue="q", requests_per_minute=1, wait_seconds=0.0)
        judge = build_judge(None, settings, limits=made)
        judges = Judges(judge)
        found = [(await evaluate(a_record(record_id=f"r-{n}"), [ordinal()], judges))[0].outcome for n in range(2)]
        await judge.aclose()
        await made.aclose()
        return list(found)

    with FakeJudgeServer() as server:
        _, second = asyncio.run(run(server.base_url))
        assert isinstance(second, Failure)
        assert (second.kind, second.unasked) == ("rate_limited", True)
        assert server.traffic.calls == 1
