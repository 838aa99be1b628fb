"""An epoch of GSM8K with a row in each sequence, and packed: steps, and the time of one on this machine.

Command:   make bench-packing ARGS=GSM8K_TRAIN.jsonl     (or: python experiments/bench_packing.py GSM8K_TRAIN.jsonl)
           --max-length 1024  --batch-size 4  --rounds 5
Needs:     two CPU cores, 8 GB of memory; train.jsonl of github.com/openai/grade-school-math.
Time:      about five minutes on two quiet cores.
Writes:    experiments/results/packing.csv: a line a round, and their medians.

SmolLM2-135M-Instruct teaches 16 of its own layers, in float32, with the defaults of `kd`. In each round both take a
step on batches that they had not before; compiling is not counted. An epoch's time is that of the median step times the
number of steps.

Expected:  at 512 tokens 2.2 times fewer steps, and at most 0.55 of the time.
"""

import argparse
import datetime
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
from bench_core import describe
from bench_methods import write_csv
from smollm2 import STUDENT_LAYERS, TEACHER_PACKAGE

from selecttkd_jax import data, distill, models
from selecttkd_jax.training import (
    Frozen,
    OneStream,
    OptimizerConfig,
    Pair,
    init_state,
    make_optimizer,
    make_train_step,
)


def main() -> None:
    """Times both and writes the table."""
    parser = argparse.ArgumentParser(description="An epoch of GSM8K, packed and not.")
    parser.add_argument("gsm8k", type=Path, help="train.jsonl of openai/grade-school-math")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2, help="sequences in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    # The models and rows of both.
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "teacher"
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), directory)
        teacher, tokenizer = models.from_pretrained(directory), data.load_tokenizer(directory)
        stop_ids = data.stop_ids(tokenizer, directory)
    records = data.read_records(options.gsm8k, columns=("question", "answer"))
    rows = data.tokenize_records(records, tokenizer, options.max_length, stop_ids)
    student = models.prune_layers(teacher, STUDENT_LAYERS)
    pair = Pair(student.config, teacher.config, data.tokenizer_size(tokenizer))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5), 1000)
    objective = distill.ObjectiveConfig().build()
    state = init_state(student.params, optimizer, seed=0)

    # Steps in turn.
    packed = data.pack_batches(rows, options.batch_size, options.max_length, seed=0)
    print(packed.summary(), flush=True)
    plain = data.make_batches(rows, options.batch_size, options.max_length, seed=0)
    sides = {
        name: (batches, make_train_step(OneStream(pair, objective, packed=name == "packed"), optimizer))
        for name, batches in (("plain", plain), ("packed", packed))
    }
    steps = {"plain": len(rows) / options.batch_size, "packed": packed.sequences_an_epoch() / options.batch_size}
    lines: list[dict[str, Any]] = []
    for number in range(options.rounds + 1):
        seconds = {}
        for name in sides if number % 2 else reversed(sides):
            batches, step = sides[name]
            batch = next(batches)
            began = time.perf_counter()
            state, metrics = step(state, Frozen(teacher.params), batch)
            jax.block_until_ready(metrics)
            seconds[name] = time.perf_counter() - began
        if number:  # the first one compiles
            lines.append({"round": number} | {f"{name}_step_s": round(value, 3) for name, value in seconds.items()})
            print(lines[-1], flush=True)

    # An epoch of each.
    middle: dict[str, Any] = {"round": "median"}
    middle |= {f"{name}_step_s": median(line[f"{name}_step_s"] for line in lines) for name in sides}
    for name in sides:
        middle[f"{name}_steps_an_epoch"] = round(steps[name], 1)
    middle["times_fewer_steps"] = round(steps["plain"] / steps["packed"], 2)
    hours = {name: steps[name] * middle[f"{name}_step_s"] / 3600 for name in sides}
    middle |= {f"{name}_epoch_hours": round(value, 2) for name, value in hours.items()}
    middle["epoch_by_plain"] = round(hours["packed"] / hours["plain"], 3)
    here = {"max_length": options.max_length, "batch_size": options.batch_size}
    here |= {"date": datetime.date.today().isoformat(), **describe()}
    write_csv("packing.csv", [line | here for line in [middle, *lines]])
    print({name: value for name, value in middle.items() if name != "round"}, flush=True)


if __name__ == "__main__":
    main()
