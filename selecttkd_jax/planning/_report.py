"""A plan as text: Markdown that reads well in a terminal, too."""

import io

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from selecttkd_jax.planning._estimate import Estimate
from selecttkd_jax.planning._program import CompiledStep
from selecttkd_jax.planning._run import Padding, RunCosts, Writing
from selecttkd_jax.planning._search import Largest
from selecttkd_jax.planning._targets import GIB, Target
from selecttkd_jax.planning._timeline import PARTS
from selecttkd_jax.runs import RunConfig

# What JAX takes of a GPU's memory when nothing else is said.
GPU_DEFAULT_SHARE = 0.75
_PART_NAMES = {"attention": "attention of both", "teacher": "teacher's layers", "student": "student's layers"}


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
        *_packing_lines(config),
    )


def _packing_lines(config: RunConfig) -> tuple[str, ...]:
    if config.data.packing == "off":
        return ()
    if config.data.packing == "sequences":
        return (f"- packed: {config.data.batch_size} full sequences a batch",)
    return (
        "- packed: what follows is of the largest step; a batch whose rows fill fewer sequences takes a smaller one",
    )


def step_report(target: Target, step: CompiledStep, costs: Estimate) -> str:
    """What the configured step needs and how long it takes at least."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in step.mesh.items())
    text = _lines(f"- mesh {mesh}; compiled in {step.cpu_seconds:.0f} s of processor time by JAX {jax.__version__}", "")
    for table in (_memory_table(target, step), _traffic_table(costs), _time_table(target, costs)):
        text += _lines(_as_text(table), "")
    if costs.timed:
        text += _lines(f"Rates: {target.device.source}.")
    usable = target.device.usable_memory
    if step.memory.peak > usable:
        return text + _lines(
            "",
            f"It does not fit: {step.memory.peak / GIB:.2f} GiB, of {usable / GIB:.2f} that a step may have.",
        )
    if target.device.platform == "gpu" and step.memory.peak > GPU_DEFAULT_SHARE * target.device.memory:
        text += _lines(
            f"JAX takes {GPU_DEFAULT_SHARE:.0%} of a GPU's memory unless told otherwise: "
            f"set XLA_PYTHON_CLIENT_MEM_FRACTION={1 - target.device.reserve:g}."
        )
    return text


def run_report(costs: RunCosts, price: float | None) -> str:
    """How long the whole run takes at least, and what that costs."""
    what = f"{costs.steps:,} steps and {costs.evaluations:,} evaluations of {costs.evaluation_seconds:.2f} s"
    bill = f", {price * costs.device_hours:,.2f} at {price:g} an hour and device" if price is not None else ""
    return _lines(
        "",
        f"The run of full rows, {what}: {costs.hours:.2f} h at least, {costs.device_hours:.2f} device-hours{bill}.",
    )


def uncounted_report() -> str:
    """Why a run by epochs has no hours."""
    return _lines(
        "", "The run: its epochs are counted with the data; give --training.steps for hours and what they cost."
    )


def padding_report(config: RunConfig, found: Padding) -> str:
    """What padding costs."""
    useful = f"rows that fill {found.fill:.0%} of {config.data.max_length} tokens"
    seconds, rate = found.costs.step_seconds, found.costs.tokens_per_second
    if seconds is None or rate is None:
        return _lines("", f"Padding: {useful}; what they cost is not known of a target without rates.")
    text = _lines(
        "",
        f"Padding: {useful}, one in a sequence (data.packing = off), take {1e3 * seconds:.1f} ms a step: "
        f"{found.fill * rate:,.0f} tokens/s of text.",
    )
    if found.packed is None:
        return text + _lines("Packed: does not apply, since selection.per_sequence ranks each row by itself.")
    assert found.packed.step_seconds is not None
    return text + _lines(
        f"Packed: in {found.sequences} sequences (rows) {1e3 * found.packed.step_seconds:.1f} ms a step: "
        f"{found.gain:.2f} times as many."
    )


def writing_report(found: list[Writing]) -> str:
    """What it takes models to write."""
    if not found:
        return _lines("", "Writing: no model writes, and there is no teacher whose answers could be learned from.")
    columns = ("rows", "prompt + answer", "GiB of weights", "peak GiB", "ms to read", "ms a token", "tokens/s at most")
    table = _table("writing (memory of a device, rows and rate of all)", *columns)
    for role in found:
        times = ("", "", "")
        if role.prefill_seconds is not None and role.token_seconds is not None:
            rate = f"{role.tokens_per_second:,.0f}"
            times = (f"{1e3 * role.prefill_seconds:.1f}", f"{1e3 * role.token_seconds:.2f}", rate)
        lengths = f"{role.prompt_length} + {role.new_tokens}"
        sizes = (f"{role.weights / GIB:.2f}", f"{role.peak / GIB:.2f}")
        table.add_row(role.role, f"{role.rows:,}", lengths, *sizes, *times)
    return _lines("", _as_text(table))


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
    """A row for each part of the step; no times where the target states no rates."""
    table = _table("step of a device", "kernels", "TFLOP", "GiB moved", "ms at least", "share")
    timeline, timed = costs.timeline, costs.step_seconds

    def add(name: str, seconds: float, *amounts: str) -> None:
        table.add_row(name, *amounts, *(("", "") if not timed else (f"{1e3 * seconds:.1f}", f"{seconds / timed:.0%}")))

    for name in (*PARTS, "other"):
        if (part := timeline.parts.get(name)) is not None:
            amounts = (f"{part.kernels:,}", f"{part.flops.total() / 1e12:.2f}", f"{part.moved / GIB:.2f}")
            add(_PART_NAMES.get(name, name), part.seconds, *amounts)
    if costs.traffic:
        whole = f" ({1e3 * timeline.links:.1f} ms in all)" if timed else ""
        add(f"collectives that no kernel covers{whole}", timeline.exposed, "", "", "")
    rate = costs.tokens_per_second
    add(
        "all of it" if rate is None else f"all of it: {rate:,.0f} tokens/s at most",
        timeline.seconds,
        f"{sum(part.kernels for part in timeline.parts.values()):,}",
        f"{costs.flops.total() / 1e12:.2f}",
        f"{costs.memory_bytes / GIB:.2f}",
    )
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
