"""Pictures a second of the serving engine: one at a time, and several at once, at each stage of the packaged cascade.

    python benchmarks/serve_batching.py [--precision auto] [--threads N] [--rounds N] [--json FILE]

The engine's turns are called here, in this thread, so that processor time is that of drawing alone. Requests differ in
prompt and seed. The counts take turns in each round. Needs `imagen-cascade[demo,serve]`.
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
from imagen.serve.config import Limits
from imagen.serve.engine import Engine
from imagen.serve.gather import Answering
from imagen.serve.metrics import Metrics
from imagen.serve.work import Step, Work

PROMPTS = ("an octopus on a blue background", "a cat on a green background", "a pizza on a red background")
COUNTS = {1: (1, 4, 16, 32), 2: (1, 4)}  # pictures at once, by the number of stages


def rate(engine: Engine, count: int, stages: int) -> tuple[float, float]:
    """Pictures a second of wall time, and of processor time, `count` at once."""
    left = 2 * max(count, 4)
    plans = [
        engine.cascade.plan(
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
        if plans:
            engine.submit([Work(plans.pop(), f"client {len(plans) % 4}", report)])

    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        begin()
    while left:
        engine._admit()
        engine._turn()
    return total / (time.perf_counter() - began), total / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    cascade = Cascade.load("emoji", precision=options.precision)
    engine = Engine(cascade, Limits(), torch.device("cpu"), Metrics(), options.precision)
    engine._answering = [Answering(stage, engine.device, engine.precision) for stage in cascade.stages]
    cascade.sample(PROMPTS, device="cpu", precision=engine.precision, stages=2, progress=False)  # texts, and warm
    rows = []
    for stages, counts in COUNTS.items():
        found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
        for number in range(options.rounds):
            for count in counts if number % 2 else reversed(counts):
                found[count].append(rate(engine, count, stages))
        for count, rates in found.items():
            wall, cpu = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = [statistics.median(r[i] / a[i] for r, a in zip(rates, found[1], strict=True)) for i in (0, 1)]
            rows.append({"stages": stages, "at_once": count, "wall": wall, "cpu": cpu, "ratio": ratio, "rates": rates})
            print(
                f"{stages} stage(s), {count:2} at once: {wall:5.2f}/s ({ratio[0]:.2f} x), "
                f"{cpu:5.2f} per CPU second ({ratio[1]:.2f} x)",
                flush=True,
            )
    print(describe_machine(machine()))
    write_json(options.json, {"machine": machine(), "precision": engine.precision, "rows": rows})


if __name__ == "__main__":
    main()
