"""The engine: pictures of a seed whatever else is drawn, batches that form and dissolve, fairness."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cascades import apart
from serving import LIMITS, engine, limits, noisy, tiny, until
from torch import nn

from imagen.cascade import Variation
from imagen.diffusion.samplers import sampler_names
from imagen.serve.engine import Engine
from imagen.serve.shares import Shares
from imagen.serve.work import Step, Work

JOB = {"device": "cpu", "precision": "fp32", "batch_size": 1}


@pytest.fixture(scope="module")
def running():
    made = engine()
    yield made
    made.stop()


class Drawn:
    """A picture on its way."""

    def __init__(self, engine: Engine, prompt: str = "cat", client: str = "a", *, shows: bool = False, **request: Any):
        self.ended = threading.Event()
        self.steps: list[Step] = []
        self.result: Any = None
        plan = engine.cascade.plan([prompt], **JOB, **request)
        self.work = Work(plan, client, self._report, lambda done, total, ends: shows)

    def _report(self, event: Any) -> None:
        if isinstance(event, Step):
            self.steps.append(event)
        else:
            self.result = event
            self.ended.set()

    def wait(self) -> Any:
        assert self.ended.wait(60)
        return self.result


class Watching:
    """A stage's network, which tells how many pictures each call had."""

    def __init__(self, engine: Engine, after: Callable[[int], Any] = lambda calls: None, stage: int = 0):
        self.sizes: list[int] = []
        self.after = after
        self.answering = engine._answering[stage]
        engine._answering[stage] = self  # type: ignore[call-overload]

    def __call__(self, calls: Sequence[Any]) -> Any:
        self.sizes.append(len(calls))
        self.after(len(self.sizes))
        return self.answering(calls)

    def forget(self) -> None:
        self.answering.forget()


REQUESTS: list[dict[str, Any]] = [
    {"seeds": 3},
    {"prompt": "dog", "seeds": 4, "sampler": "heun", "steps": 4},
    {"prompt": "", "seeds": 5, "guidance": 1.0},
    {"seeds": 6, "sampler": "ddpm", "steps": [7, 2]},
    {"seeds": 7, "negative": "dog", "guidance": [4.0, 1.5], "guidance_interval": (-4.0, 4.0)},
    {"seeds": [Variation(3, 9, 0.4)], "sampler": "ddim", "guidance_rescale": 0.5},
    {"seeds": 8, "stages": 1, "sampler": "dpmpp_2m_sde"},
    {"seeds": 9, "init": noisy(), "mask": noisy(seed=1).convert("L"), "strength": 0.6, "steps": 5},
]


def test_a_picture_is_that_of_its_seed_alone_and_in_any_batch(running):
    """Alone, among seven others of other samplers, steps and guidance, and by what `imagen sample` runs."""
    together = [Drawn(running, client=str(i), **request) for i, request in enumerate(REQUESTS)]
    running.submit([drawn.work for drawn in together])
    for drawn, request in zip(together, REQUESTS, strict=True):
        alone = Drawn(running, **request)
        running.submit([alone.work])
        prompt = request.get("prompt", "cat")
        request = {name: value for name, value in request.items() if name != "prompt"}
        sampled = running.cascade.sample([prompt], progress=False, **JOB, **request)[0]
        assert apart(drawn.wait(), sampled) <= 1, request
        assert apart(alone.wait(), sampled) <= 1, request
    assert apart(together[0].result, together[1].result) > 5


@pytest.mark.parametrize("sampler", sampler_names())
def test_steps_are_counted_and_shown(running, sampler):
    drawn = Drawn(running, shows=True, sampler=sampler, steps=[3, 2])
    running.submit([drawn.work])
    picture = drawn.wait()
    assert [(step.stage, step.step, step.steps) for step in drawn.steps] == [
        *((0, 1, 3), (0, 2, 3), (0, 3, 3)),
        *((1, 1, 2), (1, 2, 2)),
    ]
    assert [step.done for step in drawn.steps] == [1, 2, 3, 4, 5] and drawn.steps[0].total == drawn.work.total == 5
    sizes = [step.preview.size for step in drawn.steps if step.preview is not None]
    assert sizes == [(16, 16)] * 3 + [(32, 32)] * 2
    last = drawn.steps[-1].preview
    assert last is not None and apart(last, picture) <= 1


def test_calls_of_one_shape_share_a_batch_and_a_new_one_joins_at_the_next_step():
    made = engine()
    first, second = Drawn(made, steps=[30, 1]), Drawn(made, "dog", "b", steps=[3, 1])
    watching = Watching(made, lambda calls: made.submit([second.work]) if calls == 10 else None)
    made.submit([first.work])
    first.wait(), second.wait()
    made.stop()
    assert watching.sizes == [1] * 10 + [2] * 3 + [1] * 17
    waiting = made.metrics.registry.get_sample_value("imagen_batch_pictures_count", {"stage": "16"})
    assert waiting == 30 + 2, "and those of the warm-up"


def test_a_batch_has_no_more_pixels_than_allowed():
    made = engine(limits=limits(batch_pixels=16 * 16 * 5))  # two guided pictures and a half
    sizes = Watching(made).sizes
    drawn = [Drawn(made, seeds=i, stages=1, steps=4) for i in range(5)]
    made.submit([each.work for each in drawn])
    pictures = [each.wait() for each in drawn]
    made.stop()
    assert max(sizes) == 2 and sum(sizes) == 5 * 4
    assert all(
        apart(picture, made.cascade.sample(["cat"], seeds=i, stages=1, steps=4, **JOB)[0]) <= 1
        for i, picture in enumerate(pictures)
    )


def test_who_is_cancelled_leaves_and_the_others_go_on():
    made = engine()
    gone, stays = Drawn(made, steps=[2000, 1]), Drawn(made, "dog", steps=[40, 1])
    gone.work.report = lambda event: gone._report(event)
    made.submit([gone.work, stays.work])
    until(lambda: len(gone.steps) > 2)
    made.cancel([gone.work])
    assert apart(stays.wait(), made.cascade.sample(["dog"], steps=[40, 1], progress=False, **JOB)[0]) <= 1
    until(lambda: made.load() == (0, 0))
    assert gone.result is None and len(gone.steps) < 2000
    made.stop()


def test_a_broken_picture_breaks_alone():
    model = tiny()

    class Breaks(nn.Module):
        """No answer for the prompt of three tokens."""

        def __init__(self, unet: nn.Module):
            super().__init__()
            self.unet = unet

        def forward(self, x, noise, *, text, text_mask, **cond):
            if (text_mask.sum(1) == 3).any():
                raise RuntimeError("three tokens")
            return self.unet(x, noise, text=text, text_mask=text_mask, **cond)

    model.stages[0].unet = Breaks(model.stages[0].unet)
    made = engine(model)
    bad, good = Drawn(made, "three words here"), Drawn(made, "cat")
    made.submit([bad.work, good.work])
    assert isinstance(bad.wait(), RuntimeError) and "three tokens" in str(bad.result)
    assert apart(good.wait(), tiny().sample(["cat"], progress=False, **JOB)[0]) <= 1
    made.stop()


def test_who_asks_for_much_does_not_hold_up_who_asks_for_little():
    made = engine(limits=limits(active=4))
    order: list[str] = []
    greedy = [Drawn(made, client="greedy", seeds=i, steps=[20, 1]) for i in range(12)]
    modest = Drawn(made, client="modest", steps=[20, 1])
    for drawn in (*greedy, modest):
        drawn.work.report = lambda event, drawn=drawn: (
            drawn._report(event) or (drawn.ended.is_set() and order.append(drawn.work.client))  # type: ignore[func-returns-value]
        )
    made.submit([drawn.work for drawn in greedy])
    until(lambda: greedy[0].steps)
    made.submit([modest.work])
    until(lambda: made.ahead().get(modest.work, 0) == 0)
    for drawn in (*greedy, modest):
        drawn.wait()
    made.stop()
    assert order.index("modest") <= 7, "in the second round of four"


def test_a_short_request_passes_a_long_one_of_the_same_client():
    made = engine(limits=limits(batch_pixels=16 * 16 * 2))  # one guided picture in each call
    long, short = Drawn(made, steps=[50, 1]), Drawn(made, steps=[3, 1])
    with made._condition:
        made.submit([long.work, short.work])
    short.wait()
    assert len(long.steps) < 20
    long.wait()
    made.stop()


def test_the_queue_says_who_is_before_whom():
    made = Engine(tiny(), LIMITS, torch.device("cpu"), engine_metrics())
    drawn = [Drawn(made, client=client) for client in "aaab"]
    made.submit([each.work for each in drawn])
    ahead = made.ahead()
    assert [ahead[each.work] for each in drawn] == [0, 2, 3, 1], "b's first comes before a's second"
    made.cancel([drawn[0].work])
    assert [made.ahead().get(each.work) for each in drawn] == [None, 0, 2, 1]


def engine_metrics() -> Any:
    from imagen.serve.metrics import Metrics

    return Metrics()


def test_shares():
    shares = Shares({"base": 4.0})
    turns = []
    for _ in range(10):
        shares.want(("base", "sr"))
        name = min(("base", "sr"), key=lambda name: (shares.spent(name), name))
        shares.spend(name, 1.0)
        turns.append(name)
    assert turns.count("base") == 8
    shares.want(("base", "sr", "late"))
    assert shares.spent("late") == min(shares.spent("base"), shares.spent("sr")), "no credit for being away"
    for _ in range(5):
        shares.want(("base", "late"))
        shares.spend("base", 100.0)
    assert shares.spent("late") < shares.spent("base"), "who waits keeps what they are owed"


def test_later_stages_have_their_turns_while_new_pictures_keep_coming():
    made = engine()
    clock = {0: 0, 1: 0}
    for stage in (0, 1):
        Watching(made, lambda calls, stage=stage: clock.update({stage: calls}), stage)
    first = Drawn(made, steps=[1, 8])
    greedy = [Drawn(made, client="b", seeds=i, stages=1, steps=60) for i in range(3)]
    with made._condition:  # all of them at once
        made.submit([first.work, *(drawn.work for drawn in greedy)])
    first.wait()
    assert clock[1] == 8 and clock[0] < 60, "not after the others"
    for drawn in greedy:
        drawn.wait()
    made.stop()
