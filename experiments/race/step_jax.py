"""Our training step on the batches of the step race.

    python step_jax.py DIRECTORY accept_all|greedy|spec_k       one verifier, one step a turn
    python step_jax.py DIRECTORY accept_all greedy spec_k       all in one process, one step of each a turn

Several verifiers start from copies of one state; a turn reports each one's wall and processor time.
"""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import flax
import jax
import numpy as np
from channel import Channel

from selecttkd_jax import data, distill, losses, models, selection, training
from selecttkd_jax.compilation import compile_ahead

VERIFIERS = {
    "accept_all": selection.accept_all,
    "greedy": partial(selection.greedy_top_k, k=5),
    "spec_k": partial(selection.spec_k, k=5),
}


def main():
    """Loads and compiles, then serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("verifiers", nargs="+", choices=list(VERIFIERS))
    options = parser.parse_args()
    channel = Channel()
    teacher = models.from_pretrained(options.directory / "teacher")
    student = models.from_pretrained(options.directory / "student")
    arrays = np.load(options.directory / "batches.npz")
    batches = [
        data.Batch(
            **{
                field.name: arrays[field.name][number]
                for field in dataclasses.fields(data.Batch)
                if field.name in arrays
            }
        )
        for number in range(len(arrays["input_ids"]))
    ]
    optimizer = training.make_optimizer(
        training.OptimizerConfig(
            learning_rate=3e-4,
            schedule="constant",
            warmup_fraction=0.0,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        len(batches),
    )
    pair = training.Pair(student.config, teacher.config, int(arrays["vocab_size"]))
    states = {name: training.init_state(student.params, optimizer, seed=0) for name in options.verifiers}
    student = dataclasses.replace(student, params={})  # the states hold their own copies
    frozen = training.Frozen(teacher.params)
    steps = {}
    for name, state in states.items():
        objective = distill.Objective(losses.forward_kl, VERIFIERS[name], floor=0.01, normalizer="token")
        step = training.make_train_step(training.OneStream(pair, objective), optimizer)
        steps[name] = compile_ahead(step, state, frozen, batches[0])
    temporary = steps[options.verifiers[0]].memory_analysis().temp_size_in_bytes
    versions = f"jax {jax.__version__}, flax {flax.__version__}"
    channel.ready(versions=versions, compiled_temp_mib=temporary / 2**20)

    turn = 0
    while channel.next_turn():
        times, loss = {}, {}
        shift = turn % len(steps)  # everyone comes first equally often
        for name in options.verifiers[shift:] + options.verifiers[:shift]:
            wall, cpu = time.perf_counter(), time.process_time()
            states[name], metrics = steps[name](states[name], frozen, batches[turn])
            jax.block_until_ready((states[name], metrics))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            times[name] = {"seconds": wall, "cpu_seconds": cpu}
            loss[name] = float(metrics["sums"].loss / metrics["sums"].count)
        turn += 1
        channel.report(loss=loss[options.verifiers[0]], by_verifier=times)


if __name__ == "__main__":
    main()
