"""The engine's thread by itself: deadlines, cancelled and refused sequences, a dead engine, and figures that add up."""

import asyncio
import time

import pytest

pytest.importorskip("torch")
pytest.importorskip("prometheus_client")

import torch

from minglm.config import ModelConfig
from minglm.inference.engine import Engine
from minglm.inference.request import Request
from minglm.model.model import Model
from minglm.serving.engine_thread import EngineThread, RequestHandle
from minglm.serving.metrics import Metrics

LONGEST_S = 60  # only a hang takes so long


def make_thread(**changes) -> EngineThread:
    torch.manual_seed(0)
    return EngineThread(Engine(Model(ModelConfig.named("nano")).eval(), 4, 200), Metrics(), **changes)


def ask(thread, prompt, new, timeout_s=LONGEST_S, **more):
    return thread.submit(prompt, new, temperature=0.0, top_p=1.0, seed=0, stop=(), timeout_s=timeout_s, **more)


async def rest(handle) -> tuple[list[int], str]:
    """All tokens of a sequence and why it ended."""
    tokens: list[int] = []
    while True:
        output = await asyncio.wait_for(handle.outputs.get(), LONGEST_S)
        assert len(output.tokens) == len(output.logprobs)
        tokens += output.tokens
        if output.finish_reason:
            return tokens, output.finish_reason


def until(happens) -> None:
    deadline_s = time.monotonic() + LONGEST_S
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def value(thread, name: str) -> float:
    return next(float(x.split()[-1]) for x in thread.metrics.text().decode().splitlines() if x.startswith(name + " "))


def played(scene, thread=None):
    """Run `scene(thread)` with the thread alive, and end it."""
    thread = thread or make_thread()

    async def run():
        thread.start()
        try:
            return await scene(thread)
        finally:
            thread.close()
            await asyncio.to_thread(thread.join, LONGEST_S)
            assert not thread.is_alive()

    return asyncio.run(run())


def test_an_answer_past_its_deadline_ends_with_what_it_has_and_leaves_the_engine():
    async def scene(thread):
        late, other = ask(thread, [5, 6], 190, timeout_s=0.2), ask(thread, [7, 8], 30)
        tokens, reason = await rest(late)
        assert reason == "timeout" and 0 <= len(tokens) < 190
        until(lambda: late.request not in thread.engine._rows)
        assert (await rest(other))[1] == "length" and late.request.tokens[: len(tokens)] == tokens
        until(lambda: thread.load == 0)
        assert thread.engine.running == thread.engine.waiting == 0
        assert value(thread, 'minglm_sequences_finished_total{reason="timeout"}') == 1

    thread = make_thread()
    step = thread.engine.step
    thread.engine.step = lambda: (time.sleep(0.02), step())[1]
    played(scene, thread)


def test_a_cancelled_sequence_frees_its_place_and_is_counted_apart():
    async def scene(thread):
        handle = ask(thread, [5, 6], 150)
        assert (await asyncio.wait_for(handle.outputs.get(), LONGEST_S)).finish_reason is None
        thread.cancel(handle)
        until(lambda: thread.engine.running == 0)
        assert thread.load == 0 and len(handle.request.tokens) < 150
        assert value(thread, "minglm_sequences_cancelled_total") == 1
        assert "minglm_sequences_finished_total{" not in thread.metrics.text().decode()

    thread = make_thread()
    step = thread.engine.step
    thread.engine.step = lambda: (time.sleep(0.01), step())[1]
    played(scene, thread)


@pytest.mark.parametrize("final_only", [True, False])
def test_figures_add_up(final_only):
    """Counters are the engine's own sums, each token counted once, each sequence in one reason and in both times."""

    async def scene(thread):
        first = [ask(thread, [5, 6, 7], 9, final_only=final_only), ask(thread, [8], 4, final_only=final_only)]
        first_tokens = [await rest(h) for h in first]
        again = await rest(ask(thread, [9, 10], 5, final_only=final_only))
        assert [len(t) for t, _ in [*first_tokens, again]] == [9, 4, 5]
        until(lambda: value(thread, "minglm_generated_tokens_total") == 9 + 4 + 5)
        assert value(thread, "minglm_prompt_tokens_total") == 3 + 1 + 2
        assert value(thread, 'minglm_sequences_finished_total{reason="length"}') == 3
        assert value(thread, "minglm_first_token_seconds_count") == value(thread, "minglm_sequence_seconds_count") == 3
        assert value(thread, "minglm_first_token_seconds_sum") <= value(thread, "minglm_sequence_seconds_sum")
        assert value(thread, "minglm_engine_step_seconds_count") == thread.engine.stats.steps
        assert value(thread, "minglm_sequences_running") == value(thread, "minglm_sequences_waiting") == 0

    played(scene)


def test_what_the_engine_refuses_fails_alone():
    async def scene(thread):
        bad, good = ask(thread, [5, 6], 500), ask(thread, [5, 6], 3)
        assert await rest(bad) == ([], "failed") and "max_len=200" in bad.request.reason
        assert (await rest(good))[1] == "length" and not thread.stopped

    played(scene)


def test_a_dead_engine_leaves_nobody_waiting(monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda args: None)  # the error is shown there; here it is wanted

    async def scene(thread):
        handles = [ask(thread, [5, 6], 100), ask(thread, [7], 100)]
        assert [(await rest(h))[1] for h in handles] == ["failed"] * 2
        until(lambda: thread.stopped and thread.load == 0)
        assert thread.failure == "RuntimeError: no more"
        assert await rest(ask(thread, [5, 6], 3)) == ([], "failed"), "one who had looked before it died"

    thread = make_thread()
    step, steps = thread.engine.step, []

    def fails():
        steps.append(1)
        if len(steps) > 3:
            raise RuntimeError("no more")
        return step()

    thread.engine.step = fails
    played(scene, thread)


def test_who_is_on_the_way_in_when_the_engine_dies_is_told(monkeypatch):
    """Submitted during its last step: neither running nor waiting, and answered all the same."""
    monkeypatch.setattr("threading.excepthook", lambda args: None)

    async def scene(thread):
        ask(thread, [5, 6], 100)
        assert (await asyncio.wait_for(late.get(), LONGEST_S)).finish_reason == "failed"
        until(lambda: thread.load == 0)

    thread, late = make_thread(), asyncio.Queue()

    def fails():
        handle = RequestHandle(Request("late", [5], 1), asyncio_loop[0], time.monotonic() + LONGEST_S, outputs=late)
        thread._inbox.append(("submit", handle))
        raise RuntimeError("no more")

    asyncio_loop = []

    async def with_loop(thread):
        asyncio_loop.append(asyncio.get_running_loop())
        await scene(thread)

    thread.engine.step = fails
    played(with_loop, thread)


def test_closing_ends_what_runs():
    async def scene(thread):
        handle = ask(thread, [5, 6], 150)
        await asyncio.wait_for(handle.outputs.get(), LONGEST_S)
        thread.close()
        assert (await rest(handle))[1] == "failed"
        until(lambda: thread.stopped)
        assert thread.failure is None

    played(scene)
