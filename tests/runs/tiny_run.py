"""A whole run in miniature: a teacher, a pruned student, and rows to learn from, in a temporary directory."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from data.small_tokenizers import build_tokenizer

from selecttkd_jax import models
from selecttkd_jax.runs import RunConfig, config_from_dict

WORDS = "the cat sat on a mat and ate red fish while dogs ran past old trees under blue skies".split()


def write_teacher(directory, vocab_size):
    config = models.DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        mlp_size=24,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        tied_head=True,
        init_scale=0.3,
    )
    params = models.init_params(config, jax.random.key(0))
    models.save_pretrained(
        directory, models.Pretrained(config, params, models.hf_config(config), directory.parent / "tokenizer")
    )


def write_rows(path, count):
    rows = [
        {"question": " ".join(WORDS[i % 7 : i % 7 + 4]), "answer": " ".join(WORDS[i % 11 : i % 11 + 1 + i % 5])}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(directory) -> RunConfig:
    """Writes everything below `directory` and returns a config of eight steps."""
    tokenizer = build_tokenizer(directory / "tokenizer")
    write_teacher(directory / "teacher", len(tokenizer) + 3)
    teacher = models.from_pretrained(directory / "teacher")
    models.save_pretrained(directory / "student", models.prune_layers(teacher, (0, 2)))
    # As a base model has it, whose texts end otherwise than a turn of the rows.
    (directory / "student" / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.7}')
    write_rows(directory / "rows.jsonl", 23)
    values = {
        "output": str(directory / "run"),
        "models": {"teacher": str(directory / "teacher"), "student": str(directory / "student")},
        "data": {
            "train": str(directory / "rows.jsonl"),
            "columns": ["question", "answer"],
            "max_length": 48,
            "batch_size": 4,
            "held_out_rows": 5,
        },
        "objective": {"divergence": "skew_kl", "verifier": "spec_k", "k": 2, "floor": 0.05},
        "optimizer": {"learning_rate": 5e-3},
        "training": {"steps": 8, "eval_every": 4, "save_every": 3, "micro_batches": 2},
    }
    return config_from_dict(values, "tiny")


def assert_rows_before(rows, name) -> None:
    """Compares with the rows of the same run by version 0.1.0, whose loop knew one objective and one kind of batch.

    On the machine that wrote them they are equal to the last digit; others round differently.
    """
    before = json.loads((Path(__file__).parent / "rows_before.json").read_text())[name]
    assert [set(row) for row in rows] == [set(row) for row in before]
    for row, expected in zip(rows, before, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7), row["step"]


def with_output(config: RunConfig, output) -> RunConfig:
    return replace(config, output=str(output))
