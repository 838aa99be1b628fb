"""What PyTorch's contenders of the step race share: the models and the batches."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def load_models(directory: Path):
    """(teacher, student) in float32 from `directory`/teacher and /student."""
    teacher = AutoModelForCausalLM.from_pretrained(directory / "teacher", dtype=torch.float32)
    student = AutoModelForCausalLM.from_pretrained(directory / "student", dtype=torch.float32)
    # SmolLM2 pads with the id that ends a turn; transformers would hold back that token's gradient everywhere.
    student.get_input_embeddings().padding_idx = None
    return teacher.eval().requires_grad_(False), student.train()


def load_batches(directory: Path):
    """Each batch as (what a model takes, mask of the positions with loss)."""
    batches = np.load(directory / "batches.npz")
    return [
        ({"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(segments).long()}, mask)
        for ids, segments, mask in zip(
            batches["input_ids"], batches["segment_ids"], torch.from_numpy(batches["loss_mask"]), strict=True
        )
    ]
