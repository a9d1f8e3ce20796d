"""One device's thread: pictures of all requests, batched together at each stage and step.

A picture that is admitted joins at the next step; one that is done, cancelled or broken leaves at once. Each turn
belongs to one stage and gathers the calls that have one shape. Turns are shared out between stages, and places between
clients, by the time that they had (`Shares`).
"""

import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from greenlet import GreenletExit, greenlet
from PIL import Image
from torch import Tensor

from imagen.cascade import Cascade, Preview
from imagen.devices import set_up
from imagen.precision import Precision, autocast_dtype, precision_name
from imagen.serve.config import Limits
from imagen.serve.gather import Answering, gathered
from imagen.serve.metrics import Metrics
from imagen.serve.shares import Shares
from imagen.serve.work import Step, Work
from imagen.stage.inputs import to_images, to_uint8

BASE_WEIGHT = 4.0  # of the first stage's turns: its pictures are small, and what people see first


class Engine:
    def __init__(
        self,
        cascade: Cascade,
        limits: Limits,
        device: torch.device,
        metrics: Metrics,
        precision: Precision = "auto",
    ):
        """precision: in which the cascade was loaded."""
        self.cascade = cascade
        self.limits = limits
        self.device = device
        self.precision: Precision = precision_name(autocast_dtype(device, precision))
        self.metrics = metrics
        self.ready = threading.Event()
        self.failure: BaseException | None = None  # after which nothing can be drawn any more
        self.seconds = 1.0  # a picture takes of the engine, lately
        if cascade.texts is not None:
            cascade.texts.stays = True
        self._gathered = gathered(cascade)
        self._answering: list[Answering] = []
        self._condition = threading.Condition()
        self._waiting: list[Work] = []
        self._active: list[Work] = []
        self._arrived = 0
        self._stopping = False
        self._clients = Shares()
        self._stages = Shares({0: BASE_WEIGHT})
        self._thread = threading.Thread(target=self._main, name=f"engine {device}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Cancel all, and wait for the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout)

    def submit(self, works: Iterable[Work]) -> None:
        with self._condition:
            for work in works:
                self._arrived += 1
                work.number = self._arrived
                self._waiting.append(work)
            self._clients.want({work.client for work in (*self._waiting, *self._active)})
            self._condition.notify()

    def cancel(self, works: Iterable[Work]) -> None:
        """They are forgotten, without a report."""
        with self._condition:
            for work in works:
                work.cancelled = True
            self._waiting = [work for work in self._waiting if not work.cancelled]
            self._condition.notify()

    def load(self) -> tuple[int, int]:
        """How many pictures wait, and how many are being made."""
        with self._condition:
            return len(self._waiting), len(self._active)

    def ahead(self) -> dict[Work, int]:
        """Of each picture that waits, how many will be begun before it, as it looks now."""
        with self._condition:
            return {work: place for place, work in enumerate(self._in_order())}

    def _in_order(self) -> list[Work]:
        """Those that wait, fairly: round by round, each client's next, the least served client first."""
        rounds = Counter(work.client for work in self._active)
        keys: dict[Work, tuple[int, float, int]] = {}
        for work in self._waiting:
            keys[work] = (rounds[work.client], self._clients.spent(work.client), work.number)
            rounds[work.client] += 1
        return sorted(self._waiting, key=keys.__getitem__)

    # --- in the engine's thread ---

    def _main(self) -> None:
        torch.set_grad_enabled(False)
        set_up(self.device)
        try:
            self._answering = [Answering(stage, self.device, self.precision) for stage in self.cascade.stages]
            self._warm_up()
        except Exception as error:
            self.failure = error
            return
        finally:
            self.ready.set()
        try:
            while self._wait():
                try:
                    self._admit()
                    self._turn()
                except Exception as error:  # never seen; whatever it is, the next request deserves an engine
                    traceback.print_exc(file=sys.stderr)
                    for work in list(self._active):
                        self._leave(work, error)
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """The thread ends; those who wait are told."""
        with self._condition:
            self.failure = error
            works, self._waiting, self._active = [*self._active, *self._waiting], [], []
        for work in works:
            with suppress(Exception):
                work.report(RuntimeError(f"the engine has failed: {error!r}"))

    def _least(self) -> dict[str, Any]:
        """What can be drawn with this cascade, whatever it is."""
        low = self.cascade.stages[0].config.low_resolution
        return {} if low is None else {"start": [Image.new("RGB", (low, low))]}

    def _warm_up(self) -> None:
        """Load the text encoder and make a picture in one step a stage: the first user should not wait for that."""
        prompt = "" if self.cascade.text is None else "a warm-up"
        request = {**self._least(), "device": self.device, "precision": self.precision}
        plan = self.cascade.plan([prompt], **request, steps=2)
        failed: list[Exception] = []
        work = Work(plan, "", lambda event: failed.append(event) if isinstance(event, Exception) else None)
        self._begin(work)
        while work in self._active:
            self._turn()
        if failed:
            raise failed[0]

    def _wait(self) -> bool:
        """Until there is something to do; False: stop."""
        with self._condition:
            while not (self._waiting or self._active or self._stopping):
                for answering in self._answering:
                    answering.forget()
                self._clients.keep(())
                self._condition.wait()
            stopping = self._stopping
        for work in [work for work in self._active if work.cancelled or stopping]:
            self._leave(work, None)
        return not stopping

    def _admit(self) -> None:
        with self._condition:
            admitted: list[Work] = []
            used = sum(work.pixels for work in self._active)
            room, places = self.limits.active_pixels, self.limits.active - len(self._active)
            for work in self._in_order():
                if places <= 0:
                    break
                if used + work.pixels <= room or not (self._active or admitted):
                    admitted.append(work)
                    used += work.pixels
                    places -= 1
                else:  # smaller ones may pass it, up to a bound
                    room = min(room, self.limits.active_pixels * 7 // 8)
            taken = set(admitted)
            self._waiting = [work for work in self._waiting if work not in taken]
        for work in admitted:
            self._begin(work)

    def _begin(self, work: Work) -> None:
        def make() -> None:
            for image in self._gathered.run(work.plan, progress=False, on_step=lambda seen: self._stepped(work, seen)):
                work.report(image)

        with self._condition:
            self._active.append(work)
        work.started = True
        work.run = greenlet(make)
        self._resume(work, None)

    def _resume(self, work: Work, answer: Tensor | None) -> None:
        """Let a picture go on to its next call, or to its end."""
        assert work.run is not None
        try:
            call = work.run.switch() if work.call is None else work.run.switch(answer)
        except Exception as error:
            self._leave(work, error)
            return
        if work.run.dead:
            self._leave(work, None)
            return
        work.call = call
        if work.at is None or work.at[0] != call.stage:
            self._stage_ended(work)
            work.at = (call.stage, time.perf_counter())

    def _leave(self, work: Work, error: Exception | None) -> None:
        if work.run is not None and not work.run.dead:
            work.run.throw(GreenletExit)
        elif error is None:
            self._stage_ended(work)
        work.run = work.call = None
        with self._condition:
            self._active = [other for other in self._active if other is not work]
        if isinstance(error, torch.AcceleratorError):  # a GPU's error stays until the process ends
            self.failure = error
        if error is not None and not work.cancelled:
            work.report(error)

    def _stage_ended(self, work: Work) -> None:
        if work.at is not None:
            resolution = self.cascade.stages[work.at[0]].config.resolution
            self.metrics.stage_seconds.labels(str(resolution)).observe(time.perf_counter() - work.at[1])

    def _stepped(self, work: Work, seen: Preview) -> None:
        work.done += 1
        preview = None
        if work.shows(work.done, work.total, seen.step + 1 == seen.steps):
            (preview,) = to_images(to_uint8(seen.x0_BCHW))
        work.report(Step(seen.stage, seen.step + 1, seen.steps, work.done, work.total, preview))

    def _turn(self) -> None:
        """One call of one network."""
        groups: dict[Any, list[Work]] = defaultdict(list)
        for work in self._active:
            if work.call is not None:
                groups[work.call.key].append(work)
        if not groups:
            return
        present = {key[0] for key in groups}
        self._stages.want(present)
        stage = min(present, key=lambda stage: (self._stages.spent(stage), stage))
        # Of one client's, those that had fewest steps: a short request need not wait for a long one before it.
        order = {work: (self._clients.spent(work.client), work.done, work.number) for work in self._active}
        group = min(
            (groups[key] for key in groups if key[0] == stage), key=lambda works: min(order[work] for work in works)
        )
        batch = self._fitting(sorted(group, key=order.__getitem__))

        began = time.perf_counter()
        answers = self._answer(stage, batch)
        for work, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                self._leave(work, answer)
            else:
                self._resume(work, answer)
        spent = time.perf_counter() - began
        self._stages.spend(stage, spent)
        for work in batch:
            self._clients.spend(work.client, spent / len(batch))
        self.metrics.batch.labels(str(self.cascade.stages[stage].config.resolution)).observe(len(batch))
        ended = sum(work.run is None for work in batch)
        if ended:
            self.seconds = 0.9 * self.seconds + 0.1 * self._seconds_each(ended)

    def _fitting(self, works: list[Work]) -> list[Work]:
        """As many of the first as one call may have, at least one."""
        batch: list[Work] = []
        pixels = 0
        for work in works:
            assert work.call is not None
            pixels += work.call.rows * work.call.x_RCHW.shape[-1] * work.call.x_RCHW.shape[-2]
            if batch and pixels > self.limits.batch_pixels:
                break
            batch.append(work)
        return batch

    def _answer(self, stage: int, batch: list[Work]) -> list[Any]:
        """To each its answer, or what went wrong with it."""
        calls = [work.call for work in batch if work.call is not None]
        try:
            return list(self._answering[stage](calls))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
        return [self._answer(stage, [work])[0] for work in batch]  # one of them may be to blame, not all

    _last_ended = 0.0

    def _seconds_each(self, ended: int) -> float:
        """Since pictures ended the last time, for each that does now; at most a minute, for idle times between."""
        now = time.perf_counter()
        seconds, self._last_ended = (now - self._last_ended) / ended, now
        return min(seconds, 60.0)
