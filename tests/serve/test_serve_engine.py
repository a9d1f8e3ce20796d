"""Test the engine: images do not depend on the batch, batches change at each step, and clients share fairly."""

from typing import Any

import pytest
import torch
from cascades import max_difference
from serving import (
    JOB,
    LIMITS,
    BatcherSpy,
    RecordedTask,
    change_limits,
    noise_image,
    start_engine,
    tiny_cascade,
    wait_until,
)
from torch import nn

from imagen.cascade import Variation
from imagen.diffusion.samplers import sampler_names
from imagen.serve.engine import Engine
from imagen.serve.fair_queue import FairQueue
from imagen.serve.scheduler import Scheduler
from imagen.serve.task import Step


@pytest.fixture(scope="module")
def running():
    made = start_engine()
    yield made
    made.stop()


REQUESTS: list[dict[str, Any]] = [
    {"seeds": 3},
    {"prompt": "dog", "seeds": 4, "sampler": "heun", "steps": 4},
    {"prompt": "", "seeds": 5, "guidance": 1.0},
    {"seeds": 6, "sampler": "ddpm", "steps": [7, 2]},
    {"seeds": 7, "negative": "dog", "guidance": [4.0, 1.5], "guidance_interval": (-4.0, 4.0)},
    {"seeds": [Variation(3, 9, 0.4)], "sampler": "ddim", "guidance_rescale": 0.5},
    {"seeds": 8, "stages": 1, "sampler": "dpmpp_2m_sde"},
    {"seeds": 9, "init": noise_image(), "mask": noise_image(seed=1).convert("L"), "strength": 0.6, "steps": 5},
]


def test_an_image_depends_on_its_own_request_only(running):
    """Sampled alone, with seven other requests, and by `Cascade.sample`."""
    together = [RecordedTask(running, client=str(i), **request) for i, request in enumerate(REQUESTS)]
    running.submit([drawn.task for drawn in together])
    for drawn, request in zip(together, REQUESTS, strict=True):
        alone = RecordedTask(running, **request)
        running.submit([alone.task])
        prompt = request.get("prompt", "cat")
        request = {name: value for name, value in request.items() if name != "prompt"}
        sampled = running.cascade.sample([prompt], progress=False, **JOB, **request)[0]
        assert max_difference(drawn.wait(), sampled) <= 1, request
        assert max_difference(alone.wait(), sampled) <= 1, request
    assert max_difference(together[0].result, together[1].result) > 5


@pytest.mark.parametrize("sampler", sampler_names())
def test_steps_and_previews_are_reported(running, sampler):
    drawn = RecordedTask(running, shows=True, sampler=sampler, steps=[3, 2])
    running.submit([drawn.task])
    picture = drawn.wait()
    assert [(step.stage, step.step, step.steps) for step in drawn.steps] == [
        *((0, 1, 3), (0, 2, 3), (0, 3, 3)),
        *((1, 1, 2), (1, 2, 2)),
    ]
    assert [step.done for step in drawn.steps] == [1, 2, 3, 4, 5] and drawn.steps[0].total == drawn.task.total == 5
    sizes = [step.preview.size for step in drawn.steps if step.preview is not None]
    assert sizes == [(16, 16)] * 3 + [(32, 32)] * 2
    last = drawn.steps[-1].preview
    assert last is not None and max_difference(last, picture) <= 1


def test_a_new_image_joins_the_batch_at_the_next_step():
    made = start_engine()
    first, second = RecordedTask(made, steps=[30, 1]), RecordedTask(made, "dog", "b", steps=[3, 1])
    watching = BatcherSpy(made, lambda calls: made.submit([second.task]) if calls == 10 else None)
    made.submit([first.task])
    first.wait(), second.wait()
    made.stop()
    assert watching.sizes == [1] * 10 + [2] * 3 + [1] * 17
    waiting = made.metrics.registry.get_sample_value("imagen_batch_pictures_count", {"stage": "16"})
    assert waiting == 30 + 2, "one call per step, and two of the warm-up"


def test_batches_respect_the_pixel_limit():
    made = start_engine(limits=change_limits(batch_pixels=16 * 16 * 5))  # two and a half guided images
    sizes = BatcherSpy(made).sizes
    drawn = [RecordedTask(made, seeds=i, stages=1, steps=4) for i in range(5)]
    made.submit([each.task for each in drawn])
    pictures = [each.wait() for each in drawn]
    made.stop()
    assert max(sizes) == 2 and sum(sizes) == 5 * 4
    assert all(
        max_difference(picture, made.cascade.sample(["cat"], seeds=i, stages=1, steps=4, **JOB)[0]) <= 1
        for i, picture in enumerate(pictures)
    )


def test_a_cancelled_image_leaves_the_batch():
    made = start_engine()
    gone, stays = RecordedTask(made, steps=[2000, 1]), RecordedTask(made, "dog", steps=[40, 1])
    gone.task.report = lambda event: gone.record(event)
    made.submit([gone.task, stays.task])
    wait_until(lambda: len(gone.steps) > 2)
    made.cancel([gone.task])
    assert max_difference(stays.wait(), made.cascade.sample(["dog"], steps=[40, 1], progress=False, **JOB)[0]) <= 1
    wait_until(lambda: made.load() == (0, 0))
    assert gone.result is None and len(gone.steps) < 2000
    made.stop()


def test_only_the_failing_image_of_a_batch_fails():
    model = tiny_cascade()

    class Breaks(nn.Module):
        """Raises for prompts of three tokens."""

        def __init__(self, unet: nn.Module):
            super().__init__()
            self.unet = unet

        def forward(self, x, noise, *, text, text_mask, **cond):
            if (text_mask.sum(1) == 3).any():
                raise RuntimeError("three tokens")
            return self.unet(x, noise, text=text, text_mask=text_mask, **cond)

    model.stages[0].unet = Breaks(model.stages[0].unet)
    made = start_engine(model)
    bad, good = RecordedTask(made, "three words here"), RecordedTask(made, "cat")
    made.submit([bad.task, good.task])
    assert isinstance(bad.wait(), RuntimeError) and "three tokens" in str(bad.result)
    assert max_difference(good.wait(), tiny_cascade().sample(["cat"], progress=False, **JOB)[0]) <= 1
    made.stop()


def test_a_large_request_does_not_delay_another_client():
    made = start_engine(limits=change_limits(active=4))
    order: list[str] = []
    greedy = [RecordedTask(made, client="greedy", seeds=i, steps=[20, 1]) for i in range(12)]
    modest = RecordedTask(made, client="modest", steps=[20, 1])
    for drawn in (*greedy, modest):
        drawn.task.report = lambda event, drawn=drawn: (
            drawn.record(event) or (drawn.ended.is_set() and order.append(drawn.task.client))  # type: ignore[func-returns-value]
        )
    made.submit([drawn.task for drawn in greedy])
    wait_until(lambda: greedy[0].steps)
    made.submit([modest.task])
    wait_until(lambda: made.queue_positions().get(modest.task, 0) == 0)
    for drawn in (*greedy, modest):
        drawn.wait()
    made.stop()
    assert order.index("modest") <= 7, "in the second round of four"


def test_a_short_request_overtakes_a_long_one_of_the_same_client():
    made = start_engine(limits=change_limits(batch_pixels=16 * 16 * 2))  # one guided image per call
    long, short = RecordedTask(made, steps=[50, 1]), RecordedTask(made, steps=[3, 1])
    long_steps: list[int] = []  # steps of the long request after each step of the short one

    def report(event: Any) -> None:  # runs in the engine's thread, so events are in the order of the steps
        if isinstance(event, Step):
            long_steps.append(len(long.steps))
        short.record(event)

    short.task.report = report
    with made.condition:
        made.submit([long.task, short.task])
    short.wait()
    long.wait()
    made.stop()
    assert len(long_steps) == 4 and len(long.steps) == 51
    assert long_steps[:3] == [1, 2, 3], "both take turns, starting with the long request"


def test_queue_positions_follow_the_fair_order():
    made = Engine(tiny_cascade(), LIMITS, torch.device("cpu"), engine_metrics())
    drawn = [RecordedTask(made, client=client) for client in "aaab"]
    made.submit([each.task for each in drawn])
    ahead = made.queue_positions()
    assert [ahead[each.task] for each in drawn] == [0, 2, 3, 1], "the first image of b comes before the second of a"
    made.cancel([drawn[0].task])
    assert [made.queue_positions().get(each.task) for each in drawn] == [None, 0, 2, 1]


class Waiting:
    """A task as the scheduler sees it."""

    def __init__(self, client: str, pixels: int = 1):
        self.client, self.pixels, self.number, self.cancelled = client, pixels, 0, False


def test_a_client_without_images_earns_no_credit():
    scheduler = Scheduler(change_limits(active=1))
    first, long, longer, second = (Waiting(client) for client in "abba")
    scheduler.add([first])
    scheduler.admit()
    scheduler.add([long, longer])
    scheduler.remove_active(first)
    scheduler.admit()
    scheduler.charge(0, [long], 500.0)
    scheduler.add([second])  # a returns
    scheduler.remove_active(long)
    scheduler.charge(0, [second], 1.0)
    assert scheduler.waiting_in_order() == [longer, second]


def test_a_large_image_starts_while_small_ones_keep_arriving():
    scheduler = Scheduler(change_limits(active=100, active_pixels=32))
    small, large = [Waiting("a") for _ in range(32)], Waiting("b", pixels=8)
    scheduler.add(small)
    scheduler.admit()
    scheduler.add([large])
    for task in small:
        scheduler.remove_active(task)
        scheduler.add([Waiting("a") for _ in range(2)])
        if large in scheduler.admit():
            return
    raise AssertionError("the large image never started")


def engine_metrics() -> Any:
    from imagen.serve.metrics import Metrics

    return Metrics()


def test_the_fair_queue_shares_by_weight_and_gives_credit_only_for_waiting():
    queue = FairQueue({"base": 4.0})
    turns = []
    for _ in range(10):
        queue.set_active(("base", "sr"))
        name = min(("base", "sr"), key=lambda name: (queue.usage(name), name))
        queue.charge(name, 1.0)
        turns.append(name)
    assert turns.count("base") == 8
    queue.set_active(("base", "sr", "late"))
    assert queue.usage("late") == min(queue.usage("base"), queue.usage("sr")), "absence earns no credit"
    for _ in range(5):
        queue.set_active(("base", "late"))
        queue.charge("base", 100.0)
    assert queue.usage("late") < queue.usage("base"), "waiting preserves credit"


def test_later_stages_get_device_time_while_new_images_arrive():
    made = start_engine()
    clock = {0: 0, 1: 0}
    for stage in (0, 1):
        BatcherSpy(made, lambda calls, stage=stage: clock.update({stage: calls}), stage)
    first = RecordedTask(made, steps=[1, 8])
    greedy = [RecordedTask(made, client="b", seeds=i, stages=1, steps=60) for i in range(3)]
    with made.condition:  # submit all at once
        made.submit([first.task, *(drawn.task for drawn in greedy)])
    first.wait()
    assert clock[1] == 8 and clock[0] < 60, "later stages must not wait for all new images"
    for drawn in greedy:
        drawn.wait()
    made.stop()
