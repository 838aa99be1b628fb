import json
from dataclasses import replace

import pytest

from selecttkd_jax import models
from selecttkd_jax.runs import config_from_dict

TEACHER = models.DecoderConfig(
    vocab_size=64, hidden_size=32, mlp_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
)
STUDENT = replace(TEACHER, hidden_size=16, mlp_size=40, num_layers=2, num_heads=2, num_kv_heads=1, tied_head=True)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """A run of two models of which there is nothing but config.json."""
    root = tmp_path_factory.mktemp("plan")
    for name, decoder in (("teacher", TEACHER), ("student", STUDENT)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(models.hf_config(decoder)))
    values = {
        "output": str(root / "run"),
        "models": {
            "teacher": str(root / "teacher"),
            "student": str(root / "student"),
            "teacher_dtype": "bfloat16",
            "compute_dtype": "bfloat16",
        },
        "data": {"train": "rows.jsonl", "max_length": 32, "batch_size": 16},
        "mesh": {"fsdp": -1},
    }
    return config_from_dict(values, "plan")
