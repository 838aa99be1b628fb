"""What a compiled step owes to its options: compile time and depth, memory of the selection, weak scaling.

Command:  python experiments/plan_checks.py [--target PREFIX]      (pip install '.[tpu-plan,gpu-plan]')
Runs on:  two CPU cores; an hour for both kinds of target.
Result:   experiments/results/plan_checks.csv, one line a compilation

Qwen2.5-7B to Qwen2.5-1.5B, all weights trained, bfloat16, 8 rows of 1,024 tokens a device:
  depth      both models cut to a quarter, a half and all of their layers: compiling must not take longer
  scaling    4 to 256 devices, weights sharded over 4 and replicated beyond: work and memory of a device must be flat
The paper's recipe (Qwen2-7B to Qwen2-1.5B, LoRA), and the same with all weights trained:
  selection  accept_all (plain distillation) against greedy_top_k and spec_k: peak memory must not grow by 1 %
Of one device's step, the least time of its kernels and of the collectives that none of them covers:
  attention  the recipe in two micro-batches on 8 H100, as many tokens in rows of 1,024 to 8,192, with either attention
  packed     the same with cuDNN's kernel for packed rows, of which it is counted as if each were one text
  step       7B to 1.5B on one H100, 8,192 tokens: beside what results/gpu_check_*.csv measured
  async      the same, plain products, on four TPU v5p chips: without and with `mesh.xla_flags` for asynchronous gathers
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax

from selecttkd_jax import planning, runs
from selecttkd_jax.runs import RunConfig, load_config

HERE = Path(__file__).parent
COLUMNS = (
    "check",
    "target",
    "setting",
    "layers",
    "peak_gib",
    "tflop",
    "sent_gib",
    "seconds",
    "cpu_seconds",
    "jax",
    "ms",
    "exposed_ms",
)
ROWS_PER_DEVICE = 8
ASYNC = (
    "xla_tpu_enable_async_collective_fusion=true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "xla_tpu_overlap_compute_collective_tc=true",
    "xla_enable_async_all_gather=true",
)
TARGETS = {
    "gpu": [f"gpu:h100:{count}" for count in (4, 8, 16, 64, 256)],
    "tpu": [f"tpu:v5p:{shape}" for shape in ("2x2x1", "2x2x2", "2x2x4", "4x4x4", "4x8x8")],
}


def main() -> None:
    """Compiles and writes a line after each compilation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="", help="only targets that begin so")
    parser.add_argument("--check", default="", help="only this check")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    results = HERE / "results" / "plan_checks.csv"
    with results.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        for check, target, setting, layers, config in compilations():
            if target.startswith(arguments.target) and check.startswith(arguments.check):
                counts, times = measured(config, target, layers)
                row = (check, target, setting, layers, *counts, jax.__version__, *times)
                print(*row, flush=True)
                writer.writerow(row)
                file.flush()


def recipe(name: str) -> RunConfig:
    """A recipe with models as they are on disk."""
    config = load_config(HERE / "configs" / f"{name}.toml")
    family = name.partition("-")[0].capitalize()
    names = {
        role: str(HERE / "configs" / "models" / f"{family}-{size}-Instruct")
        for role, size in (("teacher", "7B"), ("student", "1.5B"))
    }
    data = replace(config.data, packing="off")
    return replace(config, data=data, models=replace(config.models, **names))


def compilations() -> Iterator[tuple[str, str, str, int, RunConfig]]:
    """(check, target, setting, layers, configuration)."""
    config = recipe("qwen2.5-7b-1.5b")
    mesh, training = replace(config.mesh, data=-1, fsdp=4), replace(config.training, micro_batches=1)
    config = replace(config, mesh=mesh, training=training)
    for targets in TARGETS.values():
        for layers in (7, 14, 28):
            yield "depth", targets[0], "spec_k", layers, sized(config, targets[0])
        for target in targets:
            yield "scaling", target, "fsdp 4", 28, sized(config, target)
    yield from timed(recipe("qwen2.5-7b-1.5b"))
    adapted = recipe("qwen2-7b-1.5b")
    whole = replace(adapted, lora=None, models=replace(adapted.models, student_dtype="float32"))
    for target in ("gpu:a100-80gb:4", "tpu:v5p:2x2x1"):
        for trained, config in (("LoRA", adapted), ("all weights", whole)):
            for verifier, k in (("accept_all", None), ("greedy_top_k", 5), ("spec_k", 5)):
                objective = replace(config.objective, verifier=verifier, k=k)
                yield "selection", target, f"{trained}, {verifier}", 28, replace(config, objective=objective)


def timed(config: RunConfig) -> Iterator[tuple[str, str, str, int, RunConfig]]:
    """The checks of time, from the recipe in two micro-batches, as it was when they were first made."""
    config = replace(config, training=replace(config.training, micro_batches=2))
    tokens = config.data.batch_size * config.data.max_length
    for length in (1024, 2048, 4096, 8192):
        for attention in ("xla", "cudnn"):
            yield "attention", "gpu:h100:8", f"{length} {attention}", 28, shaped(config, tokens, length, attention)
        packed = shaped(config, tokens, length, "cudnn")
        packed = replace(packed, data=replace(packed.data, packing="sequences"))
        yield "packed", "gpu:h100:8", f"{length} cudnn", 28, packed
    training = replace(config.training, micro_batches=1)
    objective = replace(config.objective, divergence="reverse_kl", alpha=None, verifier="greedy_top_k")
    alone = replace(config, training=training, objective=objective, mesh=replace(config.mesh, fsdp=1))
    for length in (1024, 4096):
        for attention in ("cudnn", "xla"):
            setting = f"{8192 // length} x {length} {attention}"
            yield "step", "gpu:h100:1", setting, 28, shaped(alone, 8192, length, attention)
    plain = replace(config, models=replace(config.models, attention="xla"))
    for setting, flags in (("none", ()), ("async", ASYNC)):
        yield "async", "tpu:v5p:2x2x1", setting, 28, replace(plain, mesh=replace(config.mesh, xla_flags=flags))


def shaped(config: RunConfig, tokens: int, length: int, attention: str) -> RunConfig:
    """So many tokens a batch, in rows of this length, by this attention."""
    data = replace(config.data, batch_size=tokens // length, max_length=length)
    return replace(config, data=data, models=replace(config.models, attention=attention))


def sized(config: RunConfig, target: str) -> RunConfig:
    """As many rows as the target's devices take."""
    rows = ROWS_PER_DEVICE * planning.parse_target(target).count
    return replace(config, data=replace(config.data, batch_size=rows))


def measured(config: RunConfig, name: str, layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Peak, operations and traffic of a device and the time that compiling took; and the least time of the step."""
    target = planning.parse_target(name)
    config = config.on_platform(target.device.platform)
    pair = runs.abstract_pair(config)
    pair = replace(
        pair, student=replace(pair.student, num_layers=layers), teacher=replace(pair.teacher, num_layers=layers)
    )
    step = planning.compile_step(config, pair, planning.target_devices(target))
    costs = planning.estimate(config, target, step)
    sent = sum(moved.sent for moved in costs.traffic.values())
    counts = (
        f"{step.memory.peak / 2**30:.3f}",
        f"{costs.flops.total() / 1e12:.3f}",
        f"{sent / 2**30:.3f}",
        f"{step.seconds:.1f}",
        f"{step.cpu_seconds:.1f}",
    )
    return counts, (f"{1e3 * costs.timeline.seconds:.1f}", f"{1e3 * costs.timeline.exposed:.1f}")


if __name__ == "__main__":
    main()
