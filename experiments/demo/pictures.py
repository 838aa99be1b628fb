"""The demo's pictures, for a light and a dark page: its curves, its acceptance by place, and one row by verdict.

Command:   python experiments/demo/pictures.py
Needs:     runs/demo, as `make demo` leaves it; 3 GB of memory
Time:      one minute
Writes:    docs/demo_curves.png, docs/demo_positions.png and docs/demo_row.png, each with a -dark.png beside it
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import run

from selecttkd_jax import data, evaluation, models, plotting, runs
from selecttkd_jax._array_types import Array, Params
from selecttkd_jax.runs import RunConfig, load_config
from selecttkd_jax.training import Pair

DOCS = Path("docs")
ROW = 4  # of the held-out rows, which is shown
PLACES = 12  # tokens that one point of the curve by place stands for


def main() -> None:
    """Draws all three."""
    run.start_logging()
    config = load_config(run.CONFIG)
    for light in plotting.plot_run(config.output)[:2]:
        shutil.copyfile(light, DOCS / light.name.replace("curves", "demo_curves"))

    held_out = replace(config.data, train=str(config.data.held_out))
    rows, _ = runs.read_calibration(held_out, str(config.models.teacher), config.data.held_out_rows)
    by_place: dict[str, dict[int, float]] = {}
    for name, student in (("pruned", config.models.student), ("distilled", f"{config.output}/student")):
        verdicts = list(verify(config, student, rows))
        places = np.concatenate([np.arange(len(accepted)) for accepted in verdicts]) // PLACES
        accepted = np.concatenate(verdicts)
        counted = {place: places == place for place in range(places.max() + 1)}
        by_place[name] = {place * PLACES: float(accepted[at].mean()) for place, at in counted.items() if at.sum() >= 50}
    title = "Greedy top-5 acceptance on held-out answers"
    plotting.plot_positions(DOCS / "demo_positions.png", by_place, title=title)

    decode = partial(data.load_tokenizer(str(config.models.teacher)).decode, clean_up_tokenization_spaces=False)
    records = data.read_records(held_out.train)
    plotting.plot_verdicts(
        DOCS / "demo_row.png",
        evaluation.split_text(decode, rows.tokens[ROW][rows.response[ROW]].tolist()),
        verdicts[ROW].tolist(),
        title="Is the student's own first choice at this place among the teacher's five likeliest tokens?",
        prompt=records[ROW].prompt[0]["content"],
        columns=90,
    )


def verify(config: RunConfig, student: str, rows: data.Rows) -> Iterator[np.ndarray]:
    """Of each row, the acceptance of its response's tokens by the objective's verifier, in their order."""
    ours, teacher = models.from_pretrained(student), models.from_pretrained(str(config.models.teacher))
    pair = Pair(ours.config, teacher.config, data.tokenizer_size(data.load_tokenizer(student)))
    verifier = config.objective.build().verifier

    @jax.jit
    def acceptance(student_params: Params, teacher_params: Params, batch: data.Batch) -> Array:
        return verifier(*pair.logits(student_params, teacher_params, batch))

    for batch in data.eval_batches(rows, 1, config.data.max_length):
        yield np.asarray(acceptance(ours.params, teacher.params, batch))[batch.loss_mask]


if __name__ == "__main__":
    main()
