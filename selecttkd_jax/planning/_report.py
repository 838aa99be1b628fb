"""A plan as text: Markdown that reads well in a terminal, too."""

import io

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from selecttkd_jax.planning._estimate import Estimate
from selecttkd_jax.planning._program import CompiledStep
from selecttkd_jax.planning._search import Largest
from selecttkd_jax.planning._targets import GIB, Target
from selecttkd_jax.runs import RunConfig

# What JAX takes of a GPU's memory when nothing else is said.
GPU_DEFAULT_SHARE = 0.75


def setting_report(config: RunConfig, target: Target) -> str:
    """What is planned."""
    parts = config.training.micro_batches
    pieces = "at once" if parts == 1 else f"in {parts} micro-batches"
    trained = "all weights" if config.lora is None else f"LoRA of rank {config.lora.rank}"
    return _lines(
        f"- {config.models.teacher} ({config.models.teacher_dtype}) -> {config.models.student} ({trained})",
        f"- {target.count} x {target.model} ({target.name})",
        f"- batch {config.data.batch_size} x {config.data.max_length} tokens {pieces}, {config.models.compute_dtype}, "
        f"remat {config.models.remat}, {config.objective.verifier}",
    )


def step_report(target: Target, step: CompiledStep, costs: Estimate) -> str:
    """What the configured step needs and how long it takes at least."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
    text = _lines(f"- mesh {mesh}; compiled in {step.cpu_seconds:.0f} s of processor time by JAX {jax.__version__}", "")
    for table in (_memory_table(target, step), _traffic_table(costs), _time_table(target, costs)):
        text += _lines(_as_text(table), "")
    if costs.seconds:
        text += _lines(f"Rates: {target.device.source}.")
    if target.device.platform == "gpu" and step.memory.peak > GPU_DEFAULT_SHARE * target.device.memory:
        text += _lines(
            f"JAX takes {GPU_DEFAULT_SHARE:.0%} of a GPU's memory unless told otherwise: "
            f"set XLA_PYTHON_CLIENT_MEM_FRACTION={1 - target.device.reserve:g}."
        )
    return text


def largest_report(config: RunConfig, target: Target, largest: list[Largest]) -> str:
    """The largest batches that fit."""
    columns = ("remat", "rows a device and micro-batch", "peak GiB", "seconds at least", "tokens/s at most")
    table = _table("largest batch that fits", *columns)
    for found in largest:
        if found.costs is None:
            table.add_row("none fits", found.remat, "", "", "", "")
            continue
        seconds, rate = found.costs.step_seconds, found.costs.tokens_per_second
        table.add_row(
            f"{found.batch_size:,}",
            found.remat,
            f"{found.rows:,}",
            f"{found.peak / GIB:.2f}",
            "" if seconds is None else f"{seconds:.4f}",
            "" if rate is None else f"{rate:,.0f}",
        )
    return _lines("", _as_text(table))


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
    share = f"{memory.peak / device.memory:.0%} of {device.memory / GIB:.2f} GiB"
    table.add_row(f"peak ({share})", f"{memory.peak / GIB:.2f}")
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


def _as_text(table: Table) -> str:
    """The table as plain text, of the same width wherever it is printed."""
    file = io.StringIO()
    Console(file=file, width=120).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines() if line.strip())


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
