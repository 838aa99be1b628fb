"""Heads of different widths over one tokenizer."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import distill, losses, selection
from selecttkd_jax._errors import InputError

REAL = 13
mask = np.ones((2, 3), bool)


def logits(width, seed):
    return np.random.default_rng(seed).normal(0, 3, (2, 3, width)).astype(np.float32)


@pytest.mark.parametrize("widths", [(16, 19), (19, 16), (13, 16), (16, 16), (13, 13)])
def test_padding_never_matters(widths):
    student, teacher = logits(widths[0], 0), logits(widths[1], 1)
    objective = distill.Objective(partial(losses.skew_kl, alpha=0.1), partial(selection.greedy_top_k, k=3))

    def loss(z, cut):
        pair = (z[..., :REAL], teacher[..., :REAL]) if cut else distill.match_vocabulary(z, teacher, REAL)
        return objective(*pair, mask).loss

    (value, gradient), (wanted, wanted_gradient) = (jax.value_and_grad(loss)(student, cut) for cut in (False, True))
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-5, atol=1e-7)
    assert np.all(np.asarray(gradient)[..., REAL:] == 0)


def test_the_narrower_width_is_kept():
    assert distill.shared_width(151_936, 152_064, 151_650) == 151_936
    assert distill.shared_width(49_152, 49_152, 49_152) == 49_152


def test_what_is_cut_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        distill.log_shared_width(151_936, 152_064, 151_650)
    assert "both cut to 151936, ids from 151650 on are masked" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        distill.log_shared_width(49_152, 49_152, 49_152)
    assert not caplog.records


def test_too_narrow_heads_are_refused():
    with pytest.raises(InputError, match="tokenizer has 20 ids, but the student's head has 16.*teacher's 19"):
        distill.match_vocabulary(logits(16, 0), logits(19, 1), 20)
    with pytest.raises(InputError, match="logits have 16 columns, fewer than the tokenizer's 20 ids"):
        distill.mask_vocabulary(logits(16, 0), 20)


def test_masking_keeps_the_dtype():
    masked = distill.mask_vocabulary(jnp.asarray(logits(16, 0), jnp.bfloat16), REAL)
    assert masked.dtype == jnp.bfloat16 and np.all(np.isneginf(np.asarray(masked, np.float32)[..., REAL:]))
