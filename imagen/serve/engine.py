"""The thread of one device, which samples the images of all requests together.

An image joins at the next network evaluation after it is admitted, and leaves as soon as it is finished, cancelled or
failed. Each turn of the loop evaluates the network of one stage for calls of equal shape; `Scheduler` chooses them.
"""

import sys
import threading
import time
import traceback
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
from imagen.serve.batching import NetworkBatcher, batched_cascade
from imagen.serve.config import Limits
from imagen.serve.metrics import Metrics
from imagen.serve.scheduler import Scheduler
from imagen.serve.task import ImageTask, Step
from imagen.stage.inputs import to_images, to_uint8


class Engine:
    """Sample images in a thread. Every public method may be called from any thread."""

    def __init__(
        self,
        cascade: Cascade,
        limits: Limits,
        device: torch.device,
        metrics: Metrics,
        precision: Precision = "auto",
    ):
        """Create an engine that is not started. precision: the one that the cascade was loaded with."""
        self.cascade = cascade
        self.device = device
        self.precision: Precision = precision_name(autocast_dtype(device, precision))
        self.metrics = metrics
        self.ready = threading.Event()  # set after the warm-up, or after it has failed
        self.failure: BaseException | None = None  # set once the engine cannot sample any more
        self.seconds = 1.0  # per image, moving average
        self._last_finished = 0.0  # `time.perf_counter`
        if cascade.texts is not None:
            cascade.texts.resident = True
        self._cascade = batched_cascade(cascade)
        self.batchers: list[NetworkBatcher] = []  # one for each stage
        self.condition = threading.Condition()  # guards the scheduler and `_stopping`
        self.scheduler = Scheduler(limits)
        self._stopping = False
        self.thread = threading.Thread(target=self._main, name=f"engine {device}", daemon=True)

    def start(self) -> None:
        """Start the thread, which loads the weights onto the device and warms up."""
        self.thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Cancel all tasks and wait up to `timeout` seconds for the thread."""
        with self.condition:
            self._stopping = True
            self.condition.notify()
        self.thread.join(timeout)

    def submit(self, tasks: Iterable[ImageTask]) -> None:
        """Queue tasks."""
        with self.condition:
            self.scheduler.add(tasks)
            self.condition.notify()

    def cancel(self, tasks: Iterable[ImageTask]) -> None:
        """Drop tasks, which then report nothing more."""
        with self.condition:
            for task in tasks:
                task.cancelled = True
            self.scheduler.remove_cancelled()
            self.condition.notify()

    def load(self) -> tuple[int, int]:
        """Return the numbers of waiting and of active images."""
        with self.condition:
            return len(self.scheduler.waiting), len(self.scheduler.active)

    def queue_positions(self) -> dict[ImageTask, int]:
        """Return for each waiting task how many others start earlier, if none arrives or is cancelled."""
        with self.condition:
            return {task: position for position, task in enumerate(self.scheduler.waiting_in_order())}

    # --- in the engine's thread ---

    def _main(self) -> None:
        torch.set_grad_enabled(False)
        set_up(self.device)
        try:
            self.batchers = [NetworkBatcher(stage, self.device, self.precision) for stage in self.cascade.stages]
            self._warm_up()
        except Exception as error:
            self.failure = error
            return
        finally:
            self.ready.set()
        try:
            while self.wait_for_work():
                try:
                    self._admit()
                    self.run_batch()
                except Exception as error:  # a bug outside a single image: fail the active ones, serve the next
                    traceback.print_exc(file=sys.stderr)
                    for task in list(self.scheduler.active):
                        self._finish(task, error)
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Report the end of the thread to all tasks."""
        with self.condition:
            self.failure = error
            tasks = self.scheduler.remove_all()
        for task in tasks:
            with suppress(Exception):
                task.report(RuntimeError(f"the engine has failed: {error!r}"))

    def _required_options(self) -> dict[str, Any]:
        """Return the options without which this cascade accepts no request."""
        low = self.cascade.stages[0].config.low_resolution
        return {} if low is None else {"start": [Image.new("RGB", (low, low))]}

    def _warm_up(self) -> None:
        """Sample one image in two steps per stage, so that the first user does not wait for loading."""
        prompt = "" if self.cascade.text is None else "a warm-up"
        options = {**self._required_options(), "device": self.device, "precision": self.precision}
        request = self.cascade.request([prompt], **options, steps=2)
        failed: list[Exception] = []
        task = ImageTask(request, "", lambda event: failed.append(event) if isinstance(event, Exception) else None)
        with self.condition:
            self.scheduler.active.append(task)
        self._start(task)
        while self.scheduler.active:
            self.run_batch()
        if failed:
            raise failed[0]

    def wait_for_work(self) -> bool:
        """Wait until there are tasks, and drop cancelled ones. Returns False when the engine has to stop."""
        with self.condition:
            while not (self.scheduler.waiting or self.scheduler.active or self._stopping):
                for batcher in self.batchers:
                    batcher.clear()
                self.scheduler.forget_clients()
                self.condition.wait()
            stopping = self._stopping
        for task in [task for task in self.scheduler.active if task.cancelled or stopping]:
            self._finish(task, None)
        return not stopping

    def _admit(self) -> None:
        """Start the waiting tasks that fit within the limits."""
        with self.condition:
            admitted = self.scheduler.admit()
        for task in admitted:
            self._start(task)

    def _start(self, task: ImageTask) -> None:
        """Run an image up to its first network evaluation."""

        def sample() -> None:
            images = self._cascade.run(
                task.request, progress=False, on_step=lambda preview: self._report_step(task, preview)
            )
            for image in images:
                task.report(image)

        task.execution = greenlet(sample)
        self._resume(task, None)

    def _resume(self, task: ImageTask, output_RCHW: Tensor | None) -> None:
        """Run an image up to its next network evaluation, or to its end.

        output_RCHW: of the network evaluation that it waits for; None at its start.
        """
        assert task.execution is not None
        try:
            call = task.execution.switch() if task.call is None else task.execution.switch(output_RCHW)
        except Exception as error:
            self._finish(task, error)
            return
        if task.execution.dead:
            self._finish(task, None)
            return
        task.call = call
        if task.stage_started is None or task.stage_started[0] != call.stage:
            self._observe_stage(task)
            task.stage_started = (call.stage, time.perf_counter())

    def _finish(self, task: ImageTask, error: Exception | None) -> None:
        """Remove an image that is finished, cancelled or failed, and report the error if there is one."""
        if task.execution is not None and not task.execution.dead:
            task.execution.throw(GreenletExit)
        elif error is None:
            self._observe_stage(task)
        task.execution = task.call = None
        with self.condition:
            self.scheduler.remove_active(task)
        if isinstance(error, torch.AcceleratorError):  # CUDA reports it for every later call of this process
            self.failure = error
        if error is not None and not task.cancelled:
            task.report(error)

    def _observe_stage(self, task: ImageTask) -> None:
        """Record how long the image was in its stage."""
        if task.stage_started is not None:
            stage, started = task.stage_started
            resolution = self.cascade.stages[stage].config.resolution
            self.metrics.stage_seconds.labels(str(resolution)).observe(time.perf_counter() - started)

    def _report_step(self, task: ImageTask, preview: Preview) -> None:
        task.done += 1
        image = None
        if task.wants_preview(task.done, task.total, preview.step + 1 == preview.steps):
            (image,) = to_images(to_uint8(preview.x0_BCHW))
        task.report(Step(preview.stage, preview.step + 1, preview.steps, task.done, task.total, image))

    def run_batch(self) -> None:
        """Evaluate one stage's network for one batch, and resume its images."""
        chosen = self.scheduler.next_batch()
        if chosen is None:
            return
        stage, batch = chosen
        began = time.perf_counter()
        for task, output in zip(batch, self._evaluate(stage, batch), strict=True):
            if isinstance(output, Exception):
                self._finish(task, output)
            else:
                self._resume(task, output)
        self.scheduler.charge(stage, batch, time.perf_counter() - began)
        self.metrics.batch.labels(str(self.cascade.stages[stage].config.resolution)).observe(len(batch))
        if finished := sum(task.execution is None for task in batch):
            self._update_seconds(finished)

    def _evaluate(self, stage: int, batch: list[ImageTask]) -> list[Any]:
        """Return for each task the network's output [R, C, H, W], or the exception that its evaluation raised."""
        calls = [task.call for task in batch if task.call is not None]
        try:
            return list(self.batchers[stage](calls))
        except Exception as error:
            if len(batch) == 1:
                return [error]
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
        return [
            self._evaluate(stage, [task])[0] for task in batch
        ]  # one by one, because a single image may be the cause

    def _update_seconds(self, finished: int) -> None:
        """Average in the time per image since the previous one finished; at most a minute, as the engine may idle."""
        now = time.perf_counter()
        seconds, self._last_finished = (now - self._last_finished) / finished, now
        self.seconds = 0.9 * self.seconds + 0.1 * min(seconds, 60.0)
