"""Greedy text of refilled slots against transformers' own `generate`, token by token."""

import jax
import numpy as np
import pytest
from models.tiny_models import LLAMA, QWEN2, QWEN3, random_tensors, write_model

from selecttkd_jax import models
from selecttkd_jax.generation import Sampling, generate

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

NEW_TOKENS = 9
LENGTHS = [5, 1, 33, 12, 31, 2, 40]


@pytest.mark.parametrize("hf_config", [LLAMA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_refilled_slots_write_what_transformers_writes(tmp_path, hf_config):
    from transformers import AutoModelForCausalLM

    source = write_model(tmp_path, hf_config, random_tensors(hf_config))
    oracle = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    random = np.random.default_rng(4)
    prompts = [random.integers(0, 53, length).tolist() for length in LENGTHS]

    def write(prompt, stops):
        with torch.no_grad():
            ids = oracle.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=stops or None,
                pad_token_id=0,
            )
        return ids[0, len(prompt) :].tolist()

    free = [write(prompt, []) for prompt in prompts]
    assert len({tuple(response) for response in free}) > 3 and all(len(response) == NEW_TOKENS for response in free)
    stops = sorted({free[0][4], free[3][2], free[6][0]})
    pretrained = models.from_pretrained(source)
    ask = {"sampling": Sampling(temperature=0, max_new_tokens=NEW_TOKENS), "key": jax.random.key(0), "slots": 3}
    assert generate(pretrained.config, pretrained.params, prompts, stop_ids=(), **ask) == free
    stopped = generate(pretrained.config, pretrained.params, prompts, stop_ids=stops, **ask)
    assert stopped == [write(prompt, stops) for prompt in prompts] and len({len(one) for one in stopped}) > 1
