"""The order of images: which start next, and which share the next network evaluation.

Stages share device time by weight. Clients share it equally: both the queue and each batch prefer the client with the
least usage (`FairQueue`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from imagen.serve.config import Limits
from imagen.serve.fair_queue import FairQueue
from imagen.serve.task import ImageTask

BASE_WEIGHT = 4.0  # of the first stage: its evaluations are cheap, and its previews are what users see first


class Scheduler:
    """The waiting and the active images of one engine.

    Not thread-safe: the engine holds its lock while it reads or changes `waiting` and changes `active`.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.waiting: list[ImageTask] = []  # in order of arrival
        self.active: list[ImageTask] = []  # started, and neither finished nor cancelled
        self.arrived = 0
        self._clients = FairQueue()
        self._stages = FairQueue({0: BASE_WEIGHT})

    def add(self, tasks: Iterable[ImageTask]) -> None:
        """Append tasks to the waiting ones and number them."""
        self._update_clients()  # a client whose tasks have ended is not active, and earns no credit
        for task in tasks:
            self.arrived += 1
            task.number = self.arrived
            self.waiting.append(task)
        self._update_clients()

    def _update_clients(self) -> None:
        self._clients.set_active({task.client for task in (*self.waiting, *self.active)})

    def remove_cancelled(self) -> None:
        """Drop waiting tasks that are cancelled."""
        self.waiting = [task for task in self.waiting if not task.cancelled]

    def remove_active(self, task: ImageTask) -> None:
        """Drop an active task."""
        self.active = [other for other in self.active if other is not task]

    def remove_all(self) -> list[ImageTask]:
        """Drop and return all tasks."""
        tasks, self.waiting, self.active = [*self.active, *self.waiting], [], []
        return tasks

    def waiting_in_order(self) -> list[ImageTask]:
        """Return the waiting tasks in the order in which they start.

        Clients take turns, the one with the least usage first; the active images of a client count as its first turns.
        """
        rounds = Counter(task.client for task in self.active)
        keys: dict[ImageTask, tuple[int, float, int]] = {}
        for task in self.waiting:
            keys[task] = (rounds[task.client], self._clients.usage(task.client), task.number)
            rounds[task.client] += 1
        return sorted(self.waiting, key=keys.__getitem__)

    def admit(self) -> list[ImageTask]:
        """Move the waiting tasks that fit within the limits to the active ones, and return them."""
        admitted: list[ImageTask] = []
        used = sum(task.pixels for task in self.active)
        available, slots = self.limits.active_pixels, self.limits.active - len(self.active)
        for task in self.waiting_in_order():
            if slots <= 0:
                break
            if used + task.pixels <= available or not (self.active or admitted):
                admitted.append(task)
                used += task.pixels
                slots -= 1
            else:  # smaller images may overtake a large one, but leave room for it, so that it starts in time
                most = self.limits.active_pixels
                available = min(available, max(most - task.pixels, 0), most * 7 // 8)
        taken = set(admitted)
        self.waiting = [task for task in self.waiting if task not in taken]
        self.active = [*self.active, *admitted]
        return admitted

    def next_batch(self) -> tuple[int, list[ImageTask]] | None:
        """Return a stage and the active tasks of its next network evaluation; None if no task waits for one."""
        groups: dict[Any, list[ImageTask]] = defaultdict(list)
        for task in self.active:
            if task.call is not None:
                groups[task.call.key].append(task)
        if not groups:
            return None
        stages = {key[0] for key in groups}
        self._stages.set_active(stages)
        stage = min(stages, key=lambda stage: (self._stages.usage(stage), stage))
        # Within a client, fewest steps first: a short request overtakes a long one that started earlier.
        order = {task: (self._clients.usage(task.client), task.done, task.number) for task in self.active}
        group = min(
            (groups[key] for key in groups if key[0] == stage), key=lambda tasks: min(order[task] for task in tasks)
        )
        return stage, self._fit(sorted(group, key=order.__getitem__))

    def _fit(self, tasks: list[ImageTask]) -> list[ImageTask]:
        """Return the first tasks, at least one, whose samples fit within the pixel limit of a batch."""
        batch: list[ImageTask] = []
        pixels = 0
        for task in tasks:
            assert task.call is not None
            pixels += task.call.batch_size * task.call.x_RCHW.shape[-1] * task.call.x_RCHW.shape[-2]
            if batch and pixels > self.limits.batch_pixels:
                break
            batch.append(task)
        return batch

    def charge(self, stage: int, batch: list[ImageTask], seconds: float) -> None:
        """Charge the device time of a batch to its stage and, in equal parts, to its images' clients."""
        self._stages.charge(stage, seconds)
        for task in batch:
            self._clients.charge(task.client, seconds / len(batch))

    def forget_clients(self) -> None:
        """Drop the usage of all clients; for an engine without tasks."""
        self._clients.retain(())
