"""Every method, 30 real steps: SmolLM2-135M-Instruct teaches 16 of its own layers on GSM8K's prompts.

Command:   make bench-methods ARGS=GSM8K_TRAIN.jsonl     (or: python experiments/bench_methods.py GSM8K_TRAIN.jsonl)
           --methods gkd,kd  --selections off,greedy     some of the runs
           --jobs 8                                      so many runs at a time, on a GPU with
                                                         XLA_PYTHON_CLIENT_PREALLOCATE=false
           --draw                                        the figure alone, from the CSV files that are there
Needs:     two CPU cores, 6 GB of memory, 2 GB of disk; train.jsonl of github.com/openai/grade-school-math.
Time:      about a minute and a half a run on two quiet cores; a method has three runs (sft has one).
Writes:    experiments/results/methods.csv, a line a run; methods_curves.csv, a line a step; methods_step.csv, the time
           of a GKD step at lambda = 1 beside its parts; docs/methods/curves.png.

A run that the CSV file holds already, of the same commit, is left out, and an unfinished one resumes: the command may
be stopped and started again. All runs begin with the same student, the pruned one after 60 steps of sft, as the
papers' students do (with noise for text, a student that writes learns noise). Batches are 4 x 128 tokens, prompts at
most 80, new text at most 48 tokens. Selection is off (accept_all), greedy (top 5) or Spec-k (k = 5), the floor 0.01.
Held-out numbers are of 16 rows.

Expected:  held-out KL falls in each run; a GKD step takes at most the writing and 1.05 times the step on the same text.
"""

import argparse
import csv
import datetime
import logging
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_core import describe
from smollm2 import STUDENT_LAYERS, TEACHER_PACKAGE

from selecttkd_jax import data, distill, models, runs
from selecttkd_jax.generation import Sampling
from selecttkd_jax.methods import METHODS
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.sharding import MeshConfig, make_mesh, place_batch
from selecttkd_jax.sources import OnPolicy, Recorder, Writers
from selecttkd_jax.training import (
    Frozen,
    OneStream,
    OptimizerConfig,
    Pair,
    init_state,
    make_optimizer,
    make_train_step,
    stream_key,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
FIGURE = ROOT / "docs" / "methods" / "curves.png"
STEPS, ROWS, LENGTH, LONGEST_PROMPT, NEW = 30, 4, 128, 80, 48
LEARNING_RATE = 2e-5
START_STEPS, START_LEARNING_RATE = 60, 1e-3
TRAIN_ROWS, HELD_OUT_ROWS = 400, 16

SELECTIONS: dict[str, dict[str, Any]] = {
    "off": {"verifier": "accept_all"},
    "greedy": {"verifier": "greedy_top_k", "k": 5, "floor": 0.01},
    "spec_k": {"verifier": "spec_k", "k": 5, "floor": 0.01},
}
# What is not the method's default, and why.
OPTIONS: dict[str, dict[str, Any]] = {
    "distillm": {"threshold": 0.5, "capacity": 16},  # at 0, thirty steps would not see a text of the student's
    "minillm": {"rollouts": 2 * ROWS},  # four passes over two batches: new text every eight steps
}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        method: Of `METHODS`.
        selection: Of `SELECTIONS`.
    """

    method: str
    selection: str

    def config(self, work: Path) -> runs.RunConfig:
        """The run's configuration, as a TOML file would have it."""
        method = {"name": self.method, **OPTIONS.get(self.method, {})}
        if getattr(METHODS[self.method], "writes", ()):
            method["sampling"] = {"max_new_tokens": NEW, **method.get("sampling", {})}
        objective = SELECTIONS[self.selection]
        if self.method == "seqkd":
            # Its own loss looks at the text alone, which nothing selects from.
            method["learn_from"] = "text" if self.selection == "off" else "logits"
            objective = {} if self.selection == "off" else objective
        if self.method == "sft":
            objective = {}
        return runs.config_from_dict(
            {
                "output": str(work / f"{self.method}-{self.selection}"),
                "models": {"teacher": str(work / "teacher"), "student": str(work / "student")},
                "data": {
                    "train": str(work / "train.jsonl"),
                    "held_out": str(work / "held_out.jsonl"),
                    "held_out_rows": HELD_OUT_ROWS,
                    "columns": ["question", "answer"],
                    "max_length": LENGTH,
                    "batch_size": ROWS,
                },
                "method": method,
                "objective": objective,
                "optimizer": {"learning_rate": LEARNING_RATE, "schedule": "cosine", "warmup_fraction": 0.1},
                "training": {"steps": STEPS, "eval_every": STEPS // 3, "save_every": STEPS, "keep_checkpoints": 1},
            },
            "bench_methods",
        )


def main() -> int:
    """Runs what is missing, then times the step of GKD, then draws."""
    parser = argparse.ArgumentParser(description="Thirty real steps of every method.")
    parser.add_argument("gsm8k", type=Path, nargs="?", help="train.jsonl of openai/grade-school-math")
    parser.add_argument("--methods", default=",".join(METHODS), help="which ones, by commas; none for none")
    parser.add_argument("--selections", default=",".join(SELECTIONS), help="off, greedy, spec_k")
    parser.add_argument("--rounds", type=int, default=5, help="of the step's timing; 0 leaves it out")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; on a GPU they share it")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench_methods", help="models and unfinished runs")
    parser.add_argument("--draw", action="store_true", help="draw the figure and run nothing")
    options = parser.parse_args()
    if not options.draw:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if options.gsm8k is None:
            parser.error("name GSM8K's train.jsonl")
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("selecttkd_jax").setLevel(logging.INFO)
        make_inputs(options.work, options.gsm8k)
        here = {"date": datetime.date.today().isoformat(), **describe()}
        methods = [name for name in options.methods.split(",") if name in METHODS]
        cases = [Case(method, selection) for method in methods for selection in options.selections.split(",")]
        cases = [case for case in cases if case.method != "sft" or case.selection == "off"]
        run_cases(cases, options.work, here, options.jobs)
        if options.rounds:
            time_step(options.work, options.rounds, here)
    draw()
    return 0


def make_inputs(work: Path, gsm8k: Path) -> None:
    """Teacher, student and rows; what is there already is kept."""
    work.mkdir(parents=True, exist_ok=True)
    teacher, student = work / "teacher", work / "student"
    if not teacher.exists():
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), teacher)
    if not (work / "held_out.jsonl").exists():
        write_rows(work, gsm8k, teacher)
    if student.exists():
        return
    pruned = work / "pruned"
    if not pruned.exists():
        models.save_pretrained(pruned, models.prune_layers(models.from_pretrained(teacher), STUDENT_LAYERS))
    config = Case("sft", "off").config(work)
    config = replace(
        config,
        output=str(work / "start"),
        models=replace(config.models, student=str(pruned)),
        optimizer=replace(config.optimizer, learning_rate=START_LEARNING_RATE),
        training=replace(config.training, steps=START_STEPS, eval_every=START_STEPS),
    )
    runs.train(config).student.rename(student)
    shutil.rmtree(work / "start" / "checkpoints")


def write_rows(work: Path, gsm8k: Path, teacher: Path) -> None:
    """Training and held-out rows: the first of GSM8K whose prompts leave room for new text."""
    tokenizer = data.load_tokenizer(teacher)
    lines = gsm8k.read_text(encoding="utf-8").splitlines(keepends=True)
    records = data.read_records(gsm8k, columns=("question", "answer"))
    short = [
        line
        for line, record in zip(lines, records, strict=True)
        if len(data.render_prompt(record, tokenizer)) <= LONGEST_PROMPT
    ]
    (work / "train.jsonl").write_text("".join(short[:TRAIN_ROWS]), encoding="utf-8")
    held_out = short[TRAIN_ROWS : TRAIN_ROWS + HELD_OUT_ROWS]
    (work / "held_out.jsonl").write_text("".join(held_out), encoding="utf-8")


def run_cases(cases: list[Case], work: Path, here: dict[str, Any], jobs: int) -> None:
    """Trains what is not there already, and adds each run's line and curve to the CSV files once it is done."""
    there = [line for line in read_csv("methods.csv") if line["commit"] == here["commit"]]
    cases = [case for case in cases if not any(line.items() >= asdict(case).items() for line in there)]
    if jobs == 1:
        finished = (train(case, work, here["commit"]) for case in cases)
    else:
        # Processes, since a run compiles for longer than it computes.
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
        pending = [pool.submit(train, case, work, here["commit"]) for case in cases]
        finished = (future.result() for future in as_completed(pending))
    for number, (case, rows, seconds) in enumerate(finished, 1):
        key = asdict(case)
        replace_lines("methods.csv", key, [key | summarise(rows) | {"seconds": round(seconds)} | here])
        replace_lines("methods_curves.csv", key, [key | curve_point(row) for row in rows])
        print(f"{number} of {len(cases)}: {case.method}, {case.selection}, {seconds:.0f} s", flush=True)


def train(case: Case, work: Path, commit: str) -> tuple[Case, list[dict[str, float]], float]:
    """The run's metrics, and how long it took."""
    directory = work / f"{case.method}-{case.selection}"
    made_by = directory.with_suffix(".commit")
    if made_by.exists() and made_by.read_text() != commit:
        shutil.rmtree(directory, ignore_errors=True)
    made_by.write_text(commit)
    began = time.perf_counter()
    runs.train(case.config(work))
    rows = read_metrics(directory / "metrics.jsonl")
    # A checkpoint is a gigabyte; what the student wrote stays.
    for name in ("checkpoints", "student"):
        shutil.rmtree(directory / name)
    made_by.unlink()
    return case, rows, time.perf_counter() - began


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    """A run in a line: means over its last ten steps, medians of times without the first two steps, which compile."""
    evaluated = [row for row in rows if "held_out/kl" in row]
    steps = [row for row in rows if row["step"] > 0]

    def late(name: str) -> float | str:
        values = [row[name] for row in steps[-10:] if name in row]
        return round(mean(values), 4) if values else ""

    def times(name: str) -> float | str:
        values = [row[name] for row in steps[2:] if name in row]
        return round(median(values), 3) if values else ""

    wrote = "teacher_rollouts" if not any("rollouts/length" in row for row in steps) else "rollouts"
    return {
        "kl_before": round(evaluated[0]["held_out/kl"], 4),
        "kl_after": round(evaluated[-1]["held_out/kl"], 4),
        "held_out_tar_before": round(evaluated[0]["held_out/tar_greedy_top_5"], 4),
        "held_out_tar_after": round(evaluated[-1]["held_out/tar_greedy_top_5"], 4),
        "tar": late("tar"),
        "length": late(f"{wrote}/length"),
        "cut": late(f"{wrote}/cut"),
        "distinct_4": late(f"{wrote}/distinct_4"),
        "step_s": times("step_seconds"),
        "learning_s": times("learning_seconds"),
        "writing_s": times(f"{wrote}/seconds"),
        "writing_tokens_per_s": times(f"{wrote}/tokens_per_second"),
    }


def curve_point(row: dict[str, float]) -> dict[str, Any]:
    """What a curve needs of a step's row."""
    names = {"held_out/kl": "kl", "divergence": "divergence", "tar": "tar", "rollouts/length": "length"}
    return {"step": int(row["step"])} | {short: f"{row[name]:.4g}" for name, short in names.items() if name in row}


def time_step(work: Path, rounds: int, here: dict[str, Any]) -> None:
    """A step of GKD at lambda = 1 beside the writing and the step on the same text, in alternating order."""
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        teacher, student = (models.from_pretrained(work / name) for name in ("teacher", "student"))
        tokenizer = data.load_tokenizer(work / "teacher")
        stop_ids = data.stop_ids(tokenizer, work / "teacher")
        records = data.read_records(work / "train.jsonl", columns=("question", "answer"))
        rows = data.tokenize_records(records, tokenizer, LENGTH, stop_ids)
        pair = Pair(student.config, teacher.config, data.tokenizer_size(tokenizer))
        frozen = Frozen(teacher=teacher.params)
        # At this rate the student stays what it is, and so does its text from round to round.
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-12), 1000)
        objective = distill.ObjectiveConfig(divergence="jensen_shannon", verifier="greedy_top_k").build()
        step = make_train_step(OneStream(pair, objective), optimizer)
        state = init_state(student.params, optimizer, seed=0)
        stored = Same(next(data.make_batches(rows, ROWS, LENGTH, seed=0)))
        writers = Writers(mesh, pair, frozen, stop_ids, longest_prompt=max(rows.prompt_lengths))
        sampling = Sampling(temperature=0.9, max_new_tokens=NEW)
        source = OnPolicy(stored, writers("student", sampling), lambda step: 1.0, mesh)
        recorder = Recorder(writers, mesh, ROWS, stop_ids)
        rewrite = recorder("student", sampling)
        place = partial(place_batch, mesh, rows=ROWS)
        key, every = stream_key(state.key, "rollouts", 0), np.ones(ROWS, bool)

        text = stored.batch

        def write() -> None:
            nonlocal text
            text = rewrite(state, stored.batch, every, key)

        def learn() -> None:
            nonlocal state
            state, metrics = step(state, frozen, place(text))
            jax.block_until_ready(metrics)

        def gkd() -> None:
            nonlocal state
            batch = source.next(replace(state, step=jnp.int32(0)))
            jax.tree.map(np.testing.assert_array_equal, batch, text)
            state, metrics = step(state, frozen, place(batch))
            jax.block_until_ready(metrics)

        lines = []
        for number in range(rounds + 1):
            seconds = {}
            others = [("offline_s", learn), ("gkd_s", gkd)]
            for name, work_of in [("writing_s", write), *(others if number % 2 else reversed(others))]:
                jax.block_until_ready(state)
                began = time.perf_counter()
                work_of()
                seconds[name] = time.perf_counter() - began
                if name == "writing_s":
                    recorder.report(1)
            ratio = (seconds["gkd_s"] - seconds["writing_s"]) / seconds["offline_s"]
            if number:  # the first one compiles
                lines.append({"round": number, **{name: round(value, 3) for name, value in seconds.items()}})
                lines[-1] |= {"learning_by_offline": round(ratio, 3)}
    middle = {name: round(median(line[name] for line in lines), 3) for name in lines[0] if name != "round"}
    write_csv("methods_step.csv", [line | here for line in [*lines, {"round": "median", **middle}]])
    allowed = middle["writing_s"] + 1.05 * middle["offline_s"]
    print(f"a GKD step {middle['gkd_s']:.3f} s; writing + 1.05 x the step on the same text {allowed:.3f} s", flush=True)


class Same:
    """A source of one stored batch, again and again."""

    def __init__(self, batch: data.Batch):
        self.batch = batch
        self.shapes = data.batch_shapes(ROWS, LENGTH)

    def next(self, state: Any) -> data.Batch:
        """The batch."""
        return self.batch

    def get_state(self) -> dict[str, Any]:
        """No position."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Has none."""


def read_csv(name: str) -> list[dict[str, str]]:
    """The lines of a result file; none where it is not there."""
    if not (RESULTS / name).exists():
        return []
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(name: str, lines: list[dict[str, Any]]) -> None:
    """Writes a result file through a neighbour, so that a kill loses nothing."""
    columns = list(dict.fromkeys(column for line in lines for column in line))
    RESULTS.mkdir(parents=True, exist_ok=True)
    rewritten = RESULTS / f"{name}.tmp"
    with rewritten.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(lines)
    rewritten.replace(RESULTS / name)


def replace_lines(name: str, key: dict[str, str], lines: list[dict[str, Any]]) -> None:
    """Puts a run's lines into a result file, in place of older ones of it, the methods in their order."""
    kept: list[dict[str, Any]] = [line for line in read_csv(name) if not line.items() >= key.items()]
    order = [*METHODS]

    def rank(line: dict[str, Any]) -> tuple[int, int, int]:
        method = order.index(line["method"]) if line["method"] in order else len(order)
        return method, [*SELECTIONS].index(line["selection"]), int(line.get("step", 0))

    write_csv(name, sorted([*kept, *lines], key=rank))


def draw() -> None:
    """Held-out KL over the steps, a panel a method."""
    from matplotlib.figure import Figure

    lines = read_csv("methods_curves.csv")
    methods = [name for name in METHODS if any(line["method"] == name for line in lines)]
    if not methods:
        return
    columns = 5
    height = -(-len(methods) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.1 * height), layout="constrained")
    panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    styles = {"off": ("#7a7a7a", ":"), "greedy": ("#1f6fb2", "-"), "spec_k": ("#d9812c", "--")}
    for panel, method in zip(panels, methods, strict=False):
        for selection, (color, dashes) in styles.items():
            points = [
                (int(line["step"]), float(line["kl"]))
                for line in lines
                if (line["method"], line["selection"]) == (method, selection) and line["kl"]
            ]
            if points:
                panel.plot(*zip(*points, strict=True), dashes, color=color, marker="o", markersize=3, label=selection)
        panel.set_title(method, fontsize=9)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    panels[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("held-out KL(teacher ‖ student), nats", fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=100)
    print(f"drawn: {FIGURE}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
