"""The reference job with this library's own training step.

Run by run.py; alone:  python ours_loop.py TEACHER STUDENT BATCHES.npz RESULT.json [--normalizer sequence|token]
"""

import argparse
import dataclasses
import json
import time

import numpy as np

from selecttkd_jax import data, distill, losses, models, selection, training

parser = argparse.ArgumentParser()
parser.add_argument("teacher")
parser.add_argument("student")
parser.add_argument("batches")
parser.add_argument("result")
parser.add_argument("--normalizer", choices=("sequence", "token"), default="sequence")
parser.add_argument("--learning-rate", type=float, default=3e-4)
options = parser.parse_args()

teacher = models.from_pretrained(options.teacher)
student = models.from_pretrained(options.student)
batches = np.load(options.batches)
steps = len(batches["input_ids"])

pair = training.Pair(student.config, teacher.config, data.tokenizer_size(data.load_tokenizer(options.teacher)))
objective = distill.Objective(
    divergence=losses.forward_kl,
    verifier=selection.accept_all,
    normalizer=options.normalizer,
)
optimizer = training.make_optimizer(
    training.OptimizerConfig(
        learning_rate=options.learning_rate,
        schedule="constant",
        warmup_fraction=0.0,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.0,
        clip_norm=0.0,
    ),
    steps,
)
state = training.init_state(student.params, optimizer, seed=0)
student = dataclasses.replace(student, params={})  # the state holds its own copy
train_step = training.make_train_step(training.OneStream(pair, objective), optimizer)

history, seconds = [], []
for index in range(steps):
    started = time.perf_counter()
    batch = data.Batch(
        **{field.name: batches[field.name][index] for field in dataclasses.fields(data.Batch) if field.name in batches}
    )
    state, metrics = train_step(state, training.Frozen(teacher.params), batch)
    history.append(float(metrics["sums"].loss / metrics["sums"].count))
    seconds.append(time.perf_counter() - started)
    print(f"  ours  step {len(history):2d}  loss {history[-1]:.5f}  {seconds[-1]:6.2f} s", flush=True)

with open(options.result, "w", encoding="utf-8") as file:
    json.dump({"losses": history, "seconds": seconds}, file)
