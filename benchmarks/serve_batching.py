"""Measure the throughput of the serving engine for several numbers of concurrent images, by stages of the cascade.

    python benchmarks/serve_batching.py [--precision auto] [--threads N] [--rounds N] [--seconds S] [--json FILE]

The engine's loop runs in the main thread, so that CPU time only includes sampling. Requests differ in prompt and
seed. Each round measures all counts, alternately forwards and backwards. The benchmark stops after --seconds, including
loading: incomplete measurements are dropped, and missing ones are listed. "busy" is CPU time as a share of threads x
wall time. Far below 100 %, other processes used the CPU and wall time is unreliable, because threads wait for each
other in every layer. Needs `imagen-cascade[demo,serve]`.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measure import describe_machine, machine

from imagen.cascade import Cascade
from imagen.files import write_json
from imagen.serve.batching import NetworkBatcher
from imagen.serve.config import Limits
from imagen.serve.engine import Engine
from imagen.serve.metrics import Metrics
from imagen.serve.task import ImageTask, Step

PROMPTS = ("an octopus on a blue background", "a cat on a green background", "a pizza on a red background")
COUNTS = ((1, 1), (1, 4), (1, 16), (1, 32), (2, 1), (2, 4))  # number of stages, concurrent images
IMAGES = {1: 4, 2: 2}  # minimum number of images per measurement, by number of stages

Rate = tuple[float, float]  # images per second of wall time, and of CPU time


def rate(engine: Engine, count: int, stages: int, end: float) -> Rate | None:
    """Measure the rate with `count` concurrent images; None if that takes beyond `end` (`time.perf_counter`)."""
    left = max(count, IMAGES[stages])
    requests = [
        engine.cascade.request(
            [PROMPTS[i % 3]], seeds=[i], stages=stages, batch_size=1, device="cpu", precision=engine.precision
        )
        for i in range(left)
    ]
    total = left

    def report(event: Any) -> None:
        nonlocal left
        if not isinstance(event, Step):
            left -= 1
            begin()

    def begin() -> None:
        if requests:
            engine.submit([ImageTask(requests.pop(), f"client {len(requests) % 4}", report)])

    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        begin()
    while left:
        if time.perf_counter() > end:
            return None
        engine._admit()
        engine.run_batch()
    return total / (time.perf_counter() - began), total / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    end = time.perf_counter() + options.seconds  # including loading
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    cascade = Cascade.load("emoji", precision=options.precision, stages=max(stages for stages, _ in COUNTS))
    engine = Engine(cascade, Limits(), torch.device("cpu"), Metrics(), options.precision)
    engine.batchers = [NetworkBatcher(stage, engine.device, engine.precision) for stage in cascade.stages]
    # Encodes the prompts and warms up.
    cascade.sample(PROMPTS, device="cpu", precision=engine.precision, steps=2, progress=False)
    rates = measured(engine, options.rounds, end)
    for stages, count in COUNTS:
        if (stages, count) not in rates:
            print(f"{stages} stage(s), {count:2} at once: not measured: out of time")
    rows = [row(*key, rates[key], rates[key[0], 1]) for key in COUNTS if key in rates and (key[0], 1) in rates]
    for each in rows:
        print(
            "{stages} stage(s), {at_once:2} at once: {wall:5.2f}/s ({ratio[0]:.2f} x), "
            "{cpu:5.2f} per CPU second ({ratio[1]:.2f} x), {rounds} round(s), "
            "busy {busy:.0%}".format(**each, busy=each["wall"] / each["cpu"] / options.threads)
        )
    print(f"{options.threads} thread(s); {describe_machine(machine())}")
    result = {"machine": machine(), "precision": engine.precision, "threads": options.threads, "rows": rows}
    write_json(options.json, result)


def measured(engine: Engine, rounds: int, end: float) -> dict[tuple[int, int], list[Rate]]:
    """Return the rates of each count, one per round, measured until `end` (`time.perf_counter`)."""
    found: dict[tuple[int, int], list[Rate]] = {}
    for number in range(rounds):
        for stages, count in COUNTS if number % 2 == 0 else reversed(COUNTS):
            each = rate(engine, count, stages, end)
            if each is None:
                return found
            found.setdefault((stages, count), []).append(each)
        print(f"round {number + 1} of {rounds} is done", flush=True)
    return found


def row(stages: int, count: int, rates: list[Rate], alone: list[Rate]) -> dict[str, Any]:
    """Return medians, and ratios of medians: the last round may be incomplete."""
    wall, cpu = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = [statistics.median(r[i] for r in rates) / statistics.median(a[i] for a in alone) for i in (0, 1)]
    return {
        "stages": stages,
        "at_once": count,
        "rounds": len(rates),
        "wall": wall,
        "cpu": cpu,
        "ratio": ratio,
        "rates": rates,
    }


if __name__ == "__main__":
    main()
