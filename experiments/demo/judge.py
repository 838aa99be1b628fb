"""Whether the demo's student says what it is shown to say: several seeds, twelve questions, a stated rule.

Command:   python experiments/demo/judge.py [--seeds 0 1 2]
Needs:     two CPU cores, 7 GB of memory
Does:      Trains the demo's student with each seed (the order of the rows; the pruned student is the same) and asks
           teacher and students the questions of questions.py. A run that stands finished is not trained anew.
Writes:    runs/demo; experiments/results/demo.csv, a line a model with its held-out numbers and its right, wrong and
           broken answers; and demo_answers.csv, each answer with its verdict
"""

import argparse
import csv
import statistics
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import run
from questions import judge

from selecttkd_jax import runs
from selecttkd_jax.metrics import read_metrics
from selecttkd_jax.runs import load_config

RESULTS = Path("experiments/results")
VERDICTS = ("right", "wrong", "broken")


def main() -> None:
    """Trains and asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    run.start_logging()
    config = load_config(run.CONFIG)
    run.make_models(config)
    answers = {"teacher": run.ask(str(config.models.teacher)), "pruned": run.ask(config.models.student)}
    numbers: dict[str, dict[str, object]] = {}
    for seed in options.seeds:
        output = config.output if seed == config.seed else f"runs/demo/seed_{seed}"
        began = time.process_time()
        finished = runs.train(replace(config, seed=seed, output=output))
        spent = time.process_time() - began
        answers[f"seed {seed}"] = run.ask(str(finished.student))
        for label, (pruned, distilled, teacher) in run.held_out_numbers(finished).items():
            for name, value in (("pruned", pruned), (f"seed {seed}", distilled), ("teacher", teacher)):
                numbers.setdefault(name, {})[label] = f"{value:.3f}"
        steps = [row["step_seconds"] for row in read_metrics(finished.metrics) if "step_seconds" in row]
        numbers[f"seed {seed}"] |= {
            "steps": len(steps),
            "seconds a step": f"{statistics.median(steps):.2f}",
            "CPU seconds": f"{spent:.0f}",
        }
        write(answers, numbers)


def write(answers: dict[str, run.Answers], numbers: dict[str, dict[str, object]]) -> None:
    """Both tables, as far as they are known."""
    with (RESULTS / "demo_answers.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("question", "model", "verdict", "answer"))
        for question in answers["teacher"]:
            for model, given in answers.items():
                table.writerow((question, model, judge(question, given[question]), given[question]))
    with (RESULTS / "demo.csv").open("w", newline="", encoding="utf-8") as file:
        labels = list(dict.fromkeys(label for found in numbers.values() for label in found))
        table = csv.DictWriter(file, ["model", *VERDICTS, *labels], lineterminator="\n")
        table.writeheader()
        for model, given in answers.items():
            counts = Counter(judge(question, answer) for question, answer in given.items())
            row = {"model": model, **{verdict: counts[verdict] for verdict in VERDICTS}, **numbers.get(model, {})}
            table.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
