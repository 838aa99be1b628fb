"""A plan as text: Markdown tables that read well in a terminal, too."""

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from selecttkd_jax.config import RunConfig
from selecttkd_jax.planning.estimate import Estimate
from selecttkd_jax.planning.program import CompiledStep
from selecttkd_jax.planning.search import Largest
from selecttkd_jax.planning.targets import GIB, Target

# What JAX takes of a GPU's memory when nothing else is said.
GPU_DEFAULT_SHARE = 0.75


def print_step(console: Console, config: RunConfig, target: Target, step: CompiledStep, costs: Estimate) -> None:
    """Prints what the configured step needs and how long it takes at least."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
    parts = config.training.micro_batches
    pieces = "at once" if parts == 1 else f"in {parts} micro-batches"
    for line in (
        f"{config.models.teacher} -> {config.models.student}",
        f"{target.count} x {target.model} ({target.name}), mesh {mesh}",
        f"batch {config.data.batch_size} x {config.data.max_length} tokens {pieces}, "
        f"{config.models.compute_dtype}, remat {'on' if config.models.remat else 'off'}, "
        f"{config.objective.verifier}",
        f"compiled in {step.cpu_seconds:.0f} s of processor time by JAX {jax.__version__}",
    ):
        console.print(line, soft_wrap=True, highlight=False)
    console.print()
    console.print(_memory_table(target, step))
    console.print(_traffic_table(costs))
    console.print(_time_table(target, costs))
    if costs.seconds:
        console.print(f"Rates: {target.device.source}.", soft_wrap=True, highlight=False)
    if target.device.platform == "gpu" and step.memory.peak > GPU_DEFAULT_SHARE * target.device.memory:
        console.print(
            f"JAX takes {GPU_DEFAULT_SHARE:.0%} of a GPU's memory unless told otherwise: "
            "set XLA_PYTHON_CLIENT_MEM_FRACTION=0.9.",
            soft_wrap=True,
            highlight=False,
        )


def print_largest(console: Console, config: RunConfig, target: Target, largest: list[Largest]) -> None:
    """Prints the largest batches that fit."""
    table = _table("largest batch that fits", "remat", "rows a device and micro-batch", "GiB", "tokens/s at most")
    for found in largest:
        if found.costs is None:
            table.add_row("on" if found.remat else "off", "none fits", "", "", "")
            continue
        rows = found.batch_size / config.training.micro_batches / target.count
        rate = found.costs.tokens_per_second
        table.add_row(
            f"{found.batch_size}",
            "on" if found.remat else "off",
            f"{rows:g}",
            f"{found.peak / GIB:.2f}",
            "" if rate is None else f"{rate:,.0f}",
        )
    console.print(table)


def _memory_table(target: Target, step: CompiledStep) -> Table:
    memory, device = step.memory, target.device
    table = _table("memory of a device", "GiB")
    for name, size in (
        ("teacher's weights", memory.teacher),
        ("student's weights", memory.student),
        ("optimizer", memory.optimizer),
        ("batch", memory.batch),
        ("activations, gradients, gathered weights, logits", memory.working),
        ("program", memory.code),
    ):
        if size >= 0.005 * GIB:
            table.add_row(name, f"{size / GIB:.2f}")
    table.add_row(
        f"peak ({memory.peak / device.memory:.0%} of {device.memory / GIB:.2f} GiB)", f"{memory.peak / GIB:.2f}"
    )
    return table


def _traffic_table(costs: Estimate) -> Table:
    table = _table("collectives of a device and step", "devices", "number", "GiB", "GiB sent")
    for (kind, group), moved in sorted(costs.traffic.items(), key=lambda entry: -entry[1].sent):
        table.add_row(kind, str(group), f"{moved.count}", f"{moved.payload / GIB:.3f}", f"{moved.sent / GIB:.3f}")
    if not costs.traffic:
        table.add_row("none", "", "", "", "")
    return table


def _time_table(target: Target, costs: Estimate) -> Table:
    table = _table("step of a device", "amount", "peak rate", "seconds at least")
    device, seconds = target.device, costs.seconds
    sent = sum(moved.sent for moved in costs.traffic.values())
    rows = (
        ("matrix products", f"{costs.flops.total() / 1e12:.2f} TFLOP", device.flops, 1e12, "TFLOP/s"),
        ("memory", f"{costs.memory_bytes / GIB:.2f} GiB", device.memory_rate, 1e9, "GB/s"),
        ("links", f"{sent / GIB:.3f} GiB", device.link_rate, 1e9, "GB/s"),
    )
    for name, amount, rate, unit, label in rows:
        stated = "" if rate is None else f"{rate / unit:,.0f} {label}"
        table.add_row(name, amount, stated, f"{seconds[name]:.4f}" if name in seconds else "")
    if costs.step_seconds is not None and costs.tokens_per_second is not None:
        table.add_row("all at once", f"{costs.tokens_per_second:,.0f} tokens/s", "", f"{costs.step_seconds:.4f}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=box.MARKDOWN)
    for name in others:
        table.add_column(name, justify="right")
    return table
