"""What a compiled step owes to its options: compile time and depth, memory of the selection, weak scaling.

Command:  python experiments/plan_checks.py [--target PREFIX]      (pip install 'selecttkd-jax[tpu-plan,gpu-plan]')
Runs on:  two CPU cores; an hour for both kinds of target.
Result:   experiments/results/plan_checks.csv, one line a compilation

Qwen2.5-7B to Qwen2.5-1.5B, all weights trained, bfloat16, 8 rows of 1,024 tokens a device:
  depth      both models cut to a quarter, a half and all of their layers: compiling must not take longer
  scaling    4 to 256 devices, weights sharded over 4 and replicated beyond: work and memory of a device must be flat
The paper's recipe (Qwen2-7B to Qwen2-1.5B, LoRA), and the same with all weights trained:
  selection  accept_all (plain distillation) against greedy_top_k and spec_k: peak memory must not grow by 1 %
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
COLUMNS = ("check", "target", "setting", "layers", "peak_gib", "tflop", "sent_gib", "seconds", "cpu_seconds", "jax")
ROWS_PER_DEVICE = 8
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
                row = (check, target, setting, layers, *measured(config, target, layers), jax.__version__)
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
    return replace(config, models=replace(config.models, **names))


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
    adapted = recipe("qwen2-7b-1.5b")
    whole = replace(adapted, lora=None, models=replace(adapted.models, student_dtype="float32"))
    for target in ("gpu:a100-80gb:4", "tpu:v5p:2x2x1"):
        for trained, config in (("LoRA", adapted), ("all weights", whole)):
            for verifier, k in (("accept_all", None), ("greedy_top_k", 5), ("spec_k", 5)):
                objective = replace(config.objective, verifier=verifier, k=k)
                yield "selection", target, f"{trained}, {verifier}", 28, replace(config, objective=objective)


def sized(config: RunConfig, target: str) -> RunConfig:
    """As many rows as the target's devices take."""
    rows = ROWS_PER_DEVICE * planning.parse_target(target).count
    return replace(config, data=replace(config.data, batch_size=rows))


def measured(config: RunConfig, name: str, layers: int) -> tuple[str, ...]:
    """Peak, operations and traffic of a device, and the time that compiling took."""
    target, pair = planning.parse_target(name), runs.abstract_pair(config)
    pair = replace(
        pair, student=replace(pair.student, num_layers=layers), teacher=replace(pair.teacher, num_layers=layers)
    )
    step = planning.compile_step(config, pair, planning.target_devices(target))
    costs = planning.estimate(config, target, step)
    sent = sum(moved.sent for moved in costs.traffic.values())
    return (
        f"{step.memory.peak / 2**30:.3f}",
        f"{costs.flops.total() / 1e12:.3f}",
        f"{sent / 2**30:.3f}",
        f"{step.seconds:.1f}",
        f"{step.cpu_seconds:.1f}",
    )


if __name__ == "__main__":
    main()
