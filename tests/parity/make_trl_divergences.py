"""Writes `trl_divergences.npz`: TRL's own per-token divergence, its loss and gradients, for `test_methods_torch.py`.

    pip install torch==2.13.0 trl==1.16.0 && python tests/parity/make_trl_divergences.py

TRL stays out of the environments that test the library: it would decide their versions.
"""

from pathlib import Path

import numpy as np
import torch
from trl.trainer.distillation_trainer import _chunked_divergence_loss

BATCH, LENGTH, STUDENT, TEACHER, VOCABULARY = 3, 7, 5, 6, 23


def main() -> None:
    """Draws inputs and asks TRL, for each of its `beta`."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 1, shape).astype(np.float32)

    found = {
        "student_hidden": draw(BATCH, LENGTH, STUDENT),
        "teacher_hidden": draw(BATCH, LENGTH, TEACHER),
        "student_head": draw(VOCABULARY, STUDENT),
        "teacher_head": draw(VOCABULARY, TEACHER),
        "mask": np.arange(LENGTH) < np.array([[7], [3], [0]]),
    }
    for beta in (0.0, 0.3, 0.5, 1.0):
        tensors = {name: torch.tensor(array) for name, array in found.items() if "/" not in name}
        hidden, head = tensors["student_hidden"].requires_grad_(), tensors["student_head"].requires_grad_()
        loss, entropy, tokens = _chunked_divergence_loss(
            hidden, tensors["teacher_hidden"], head, tensors["teacher_head"], tensors["mask"], beta
        )
        loss.backward()
        assert int(tokens) == int(found["mask"].sum())
        found |= {
            f"{beta}/loss": np.float32(loss.item()),
            f"{beta}/hidden": hidden.grad.numpy(),
            f"{beta}/head": head.grad.numpy(),
        }
    np.savez(Path(__file__).with_name("trl_divergences.npz"), **found)


if __name__ == "__main__":
    main()
