"""Compile the steps of a sampler: network evaluation, guidance, threshold and update in one graph.

A sampler is Python code with float coefficients, which a compiler would treat as constants of one step. So the sampler
is first traced on symbols: its operations between two network evaluations become a `Program`, whose inputs include the
coefficients. Steps with equal programs share one compiled function at all noise levels. This works for samplers that
do arithmetic on images and do not branch on their values.

Shapes: see `imagen.stage.inputs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from imagen.devices import send
from imagen.diffusion.guidance import Denoiser, Estimate, uniform_logsnr
from imagen.diffusion.samplers.base import Levels, Noise, OnStep
from imagen.models.compiling import compile_function

RunSampler = Callable[..., Tensor]  # (denoise, x, logsnrs, noise=..., on_step=...) -> x
Traced = tuple[list["Program"], str]  # a sampler's programs in their order, and the name of its result


@dataclass(frozen=True)
class Program:
    """The arithmetic of a sampler from one network evaluation to the next."""

    update: fx.GraphModule  # (x0, variance, constants, noises, inputs) -> outputs
    x: str  # name of the value at which the network is evaluated
    logsnr: float
    constants: tuple[float, ...]
    noises: int  # number of noise tensors
    inputs: tuple[str, ...]  # names of the values that `update` reads
    outputs: tuple[str, ...]  # names of the values that `update` computes for later programs
    reports: tuple[tuple[int, int, str, str], ...]  # arguments of each callback: i, N and the names of x and x0


@dataclass
class CompiledSteps:
    """Run samplers with one compiled function per distinct step. options: of torch.compile."""

    options: Mapping[str, Any] = field(default_factory=dict)
    updates: dict[str, fx.GraphModule] = field(default_factory=dict)  # by code: equal steps share one
    _step: Callable[..., tuple[Tensor, ...]] | None = None

    def trace(self, run: RunSampler, logsnrs: Levels, learned_variance: bool) -> "Traced | None":
        """Return the programs of a sampler; None if it cannot be traced and must run uncompiled.

        learned_variance: whether the denoiser's estimates have a variance.
        """
        try:
            return trace_sampler(run, logsnrs, learned_variance, self.updates)
        except Exception:  # on symbolic images a sampler may raise any exception
            return None

    @torch.no_grad()
    def run(
        self,
        traced: "Traced",
        denoiser_at: Callable[[float], Denoiser],
        x_BCHW: Tensor,
        *,
        noise: Noise,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Run traced programs, from x at the first log-SNR; return x at the last.

        denoiser_at: returns the denoiser at a log-SNR; each distinct denoiser is compiled.
        """
        if self._step is None:
            self._step = compile_function(_step, **self.options)
        programs, result = traced
        numbers = [number for program in programs for number in (program.logsnr, *program.constants)]
        sizes = [1 + len(program.constants) for program in programs]
        table = torch.split(send(torch.tensor(numbers, dtype=torch.float64).to(x_BCHW.dtype), x_BCHW.device), sizes)
        values = {"x": x_BCHW}
        for number, (program, row) in enumerate(zip(programs, table, strict=True)):
            outputs = self._step(
                program.update,
                denoiser_at(program.logsnr),
                values[program.x],
                row,
                tuple(noise() for _ in range(program.noises)),
                tuple(values[name] for name in program.inputs),
            )
            # The next replay of a CUDA graph overwrites its outputs.
            outputs = tuple(value.clone() for value in outputs) if x_BCHW.is_cuda else outputs
            values |= zip(program.outputs, outputs, strict=True)
            for i, steps, x, x0 in program.reports:
                if on_step is not None:
                    on_step(i, steps, values[x], values[x0])
            later = {result, *(name for other in programs[number + 1 :] for name in (other.x, *other.inputs))}
            values = {name: value for name, value in values.items() if name in later}
        return values[result]


def _step(
    update: fx.GraphModule,
    denoise: Denoiser,
    x_BCHW: Tensor,
    numbers: Tensor,
    noises: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Evaluate the denoiser and update x. numbers: the log-SNR, then the constants of `update`, 1-D."""
    estimate = denoise(x_BCHW, numbers[:1].expand(x_BCHW.shape[0]).contiguous())
    outputs: tuple[Tensor, ...] = update(estimate.x0, estimate.variance, numbers[1:].unbind(), noises, inputs)
    return outputs


def trace_sampler(
    run: RunSampler, logsnrs: Levels, learned_variance: bool, updates: dict[str, fx.GraphModule]
) -> Traced:
    """Return a sampler's programs.

    updates: updates of earlier programs, by their code; new ones are added.
    Raises fx.proxy.TraceError, TypeError or similar for a sampler that reads the values of images.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)

    def denoise(x: fx.Proxy, logsnr_B: Any, /) -> Estimate:
        logsnr = uniform_logsnr(logsnr_B)
        if logsnr is None:
            raise TypeError("a sampler must evaluate its denoiser at one log-SNR, from `batch_logsnr`")
        estimate = graph.call_function(_evaluate, (x.node, logsnr))
        x0, variance = (fx.Proxy(graph.call_function(_take, (estimate, i)), tracer) for i in (0, 1))
        return Estimate(x0, variance if learned_variance else None)  # type: ignore[arg-type]

    def report(i: int, steps: int, x: fx.Proxy, x0: fx.Proxy) -> None:
        graph.call_function(_report, (i, steps, x.node, x0.node))

    x = fx.Proxy(graph.placeholder("x"), tracer)
    result = run(denoise, x, logsnrs, noise=lambda: fx.Proxy(graph.call_function(_noise), tracer), on_step=report)
    graph.output(result.node)  # type: ignore[attr-defined]
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or node.target in _MARKS)
    nodes = list(graph.nodes)
    starts = [i for i, node in enumerate(nodes) if node.target is _evaluate]
    parts = [nodes[start:end] for start, end in zip(starts, [*starts[1:], len(nodes) - 1], strict=True)]
    return [_program(part, updates) for part in parts], result.node.name  # type: ignore[attr-defined]


def _program(part: list[fx.Node], updates: dict[str, fx.GraphModule]) -> Program:
    """Return the program of the nodes from one network evaluation up to the next."""
    evaluation, *rest = part
    own = set(part)
    reports = [node for node in rest if node.target is _report]
    work = [node for node in rest if node.target not in _MARKS]
    noises = [node for node in rest if node.target is _noise]
    inputs = list(dict.fromkeys(arg for node in work for arg in node.all_input_nodes if arg not in own))
    outputs = [
        node
        for node in rest
        if node.target is not _report and any(user not in own or user.target is _report for user in node.users)
    ]
    constants: list[float] = []
    graph = fx.Graph()
    x0, variance, numbers, drawn, given = (
        graph.placeholder(name) for name in ("x0", "variance", "constants", "noises", "inputs")
    )
    env: dict[fx.Node, fx.Node] = {}
    for source, several in ((drawn, noises), (given, inputs)):
        env |= {node: graph.call_function(_take, (source, i)) for i, node in enumerate(several)}
    for node in rest:
        if node.target is _take and node.args[0] is evaluation:
            env[node] = (x0, variance)[node.args[1]]  # type: ignore[index]

    def hoisted(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return env[value]
        if not isinstance(value, float):
            return value
        constants.append(value)
        return graph.call_function(_take, (numbers, len(constants) - 1))

    for node in work:
        if node not in env:
            args, kwargs = (fx.node.map_aggregate(found, hoisted) for found in (node.args, node.kwargs))
            env[node] = graph.create_node(node.op, node.target, args, kwargs)  # type: ignore[arg-type]
    graph.output(tuple(env[node] for node in outputs))
    module = fx.GraphModule({}, graph)
    return Program(
        update=updates.setdefault(module.code, module),
        x=evaluation.args[0].name,  # type: ignore[union-attr, arg-type]
        logsnr=evaluation.args[1],  # type: ignore[arg-type]
        constants=tuple(constants),
        noises=len(noises),
        inputs=tuple(node.name for node in inputs),
        outputs=tuple(node.name for node in outputs),
        reports=tuple((node.args[0], node.args[1], node.args[2].name, node.args[3].name) for node in reports),  # type: ignore[misc, union-attr]
    )


def _take(values: Any, index: int) -> Any:
    return values[index]


def _evaluate(x: Tensor, logsnr: float) -> Estimate:
    raise NotImplementedError("stands for an evaluation of the denoiser")


def _noise() -> Tensor:
    raise NotImplementedError("stands for noise")


def _report(i: int, steps: int, x: Tensor, x0: Tensor) -> None:
    raise NotImplementedError("stands for the callback")


_MARKS = (_evaluate, _noise, _report)
