"""How long a start takes until its first step: with rows and the step made, and with both kept from the start before.

Command:   python experiments/bench_data.py GSM8K_TRAIN.jsonl     --rows 100000
Needs:     two CPU cores; train.jsonl of github.com/openai/grade-school-math, whose rows are taken over and over.
Time:      five minutes.
Writes:    experiments/results/data.csv: a line a start.

Each start is a process of its own, with the tokenizer of SmolLM2 and rows of up to 512 tokens: a file of all rows is
read, rendered, tokenised and kept; the second start reads it back. Before them one start makes the rows in one process
(data.workers = 1) and keeps nothing; the first start makes them in as many as there are cores. `rows_s` is the time
until rows are there, with tokenizers and checks. `traced_s` and `compiled_s` are the time of the step's program:
SmolLM2-135M teaches itself, four rows a batch.

Expected:  the second start has its rows in a tenth of the time, and compiles in a fifth at most. The committed lines
           are of 40,000 rows on a machine that had a load of 19 on its two cores: there the second process brought 4 %.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

from bench_core import describe
from bench_methods import write_csv
from smollm2 import TEACHER_PACKAGE

from selecttkd_jax import models

START = """
import sys, time
import jax
from selecttkd_jax.compilation import keep_programs
from selecttkd_jax.runs import _prepare, config_from_dict, specify_step
from selecttkd_jax.sharding import make_mesh

folder, workers = sys.argv[1], int(sys.argv[2])
config = config_from_dict(
    {
        "output": folder + "/run",
        "models": {"teacher": folder + "/model", "student": folder + "/model"},
        "data": {
            "train": folder + "/rows.jsonl",
            "columns": ["question", "answer"],
            "cache": "off" if workers else folder + "/kept",
            **({"workers": workers} if workers else {}),
            "max_length": 512,
            "batch_size": 4,
        },
    },
    "bench_data",
).resolved().on_platform("cpu")
began = time.perf_counter()
prepared = _prepare.prepare(config)
marks = [began, time.perf_counter()]
if workers:
    print(len(prepared.train_rows), f"{marks[1] - marks[0]:.2f}", "-", "-")
    sys.exit()
keep_programs(folder + "/programs")
mesh = make_mesh(config.mesh)
step, specs = specify_step(config, prepared.pair, mesh)
with jax.set_mesh(mesh):
    marks.append(time.perf_counter())
    lowered = step.lower(specs.state, specs.frozen, specs.batch)
    marks.append(time.perf_counter())
    lowered.compile()
    marks.append(time.perf_counter())
seconds = [marks[1] - marks[0], marks[3] - marks[2], marks[4] - marks[3]]
print(len(prepared.train_rows), *(f"{number:.2f}" for number in seconds))
"""


def main() -> None:
    """Writes the data, starts three times, and writes the table."""
    parser = argparse.ArgumentParser(description="How long a start takes until its first step.")
    parser.add_argument("gsm8k", type=Path, help="train.jsonl of openai/grade-school-math")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), folder / "model")
        with options.gsm8k.open() as rows, (folder / "rows.jsonl").open("w") as file:
            for number, row in enumerate(islice(cycle(list(rows)), options.rows)):
                record = json.loads(row)
                file.write(json.dumps(record | {"question": f"{number}. {record['question']}"}) + "\n")
        for start, workers in (("one process", 1), ("first", 0), ("second", 0)):
            said = subprocess.run(
                [sys.executable, "-c", START, scratch, str(workers)],
                capture_output=True,
                text=True,
                check=True,
            )
            names = ("rows", "rows_s", "traced_s", "compiled_s")
            lines.append({"start": start} | dict(zip(names, said.stdout.split(), strict=True)))
            print(lines[-1], flush=True)
    here = {"date": datetime.date.today().isoformat(), **describe()}
    write_csv("data.csv", [line | here for line in lines])


if __name__ == "__main__":
    main()
