from functools import partial

import jax
import numpy as np
import pytest

from selecttkd_jax import models, selection, training
from selecttkd_jax.data import Rows, eval_batches
from selecttkd_jax.evaluation import HeldOut

SHAPE = dict(hidden_size=10, mlp_size=13, num_heads=2, num_kv_heads=1, head_dim=4, tied_head=True, init_scale=0.5)
TEACHER = models.DecoderConfig(vocab_size=19, num_layers=2, **SHAPE)
STUDENT = models.DecoderConfig(vocab_size=17, num_layers=1, **SHAPE)
PAIR = training.Pair(student=STUDENT, teacher=TEACHER, vocab_size=16)
ROWS = Rows(
    tokens=tuple(np.array(row, np.int32) for row in ([1, 2, 3, 4, 5], [7, 8, 9], [3, 1, 4, 1, 5, 9])),
    response=tuple(np.array(row, bool) for row in ([0, 0, 1, 1, 1], [0, 0, 1], [0, 1, 0, 1, 1, 1])),
    max_length=7,
    read=3,
)


@pytest.fixture(scope="module")
def params():
    return models.init_params(STUDENT, jax.random.key(0)), models.init_params(TEACHER, jax.random.key(1))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def test_every_number_is_the_mean_over_response_tokens(params):
    """Row by row, without padding or batches, in float64."""
    student, teacher = params
    totals = {
        "kl": [],
        "cross_entropy": [],
        "teacher_cross_entropy": [],
        "top1_agreement": [],
        "greedy": [],
        "spec": [],
    }
    for tokens, response in zip(ROWS.tokens, ROWS.response, strict=True):
        log_q, log_p = (
            log_softmax(models.logits(models.Pretrained(config, weights, {}), tokens[None])[0, :, :16])
            for config, weights in ((STUDENT, student), (TEACHER, teacher))
        )
        for t in range(len(tokens) - 1):
            if not response[t + 1]:
                continue
            p, q = np.exp(log_p[t]), np.exp(log_q[t])
            totals["kl"].append(np.sum(p * (log_p[t] - log_q[t])))
            totals["cross_entropy"].append(-log_q[t][tokens[t + 1]])
            totals["teacher_cross_entropy"].append(-log_p[t][tokens[t + 1]])
            totals["top1_agreement"].append(np.argmax(p) == np.argmax(q))
            totals["greedy"].append(np.argmax(q) in np.argsort(-p)[:3])
            totals["spec"].append(1 - (1 - np.minimum(p, q).sum()) ** 2)
    verifiers = {"greedy": partial(selection.greedy_top_k, k=3), "spec": partial(selection.spec_k, k=2)}
    for batch_size in (2, 3):
        held_out = HeldOut(PAIR, training.Frozen(teacher), eval_batches(ROWS, batch_size, 7), verifiers)
        values = held_out(student)
        assert values.pop("tokens") == len(totals["kl"]) == 8
        assert values == pytest.approx({name: np.mean(value) for name, value in totals.items()}, rel=1e-5)


def test_a_student_that_is_its_teacher_scores_perfectly(params):
    _, teacher = params
    pair = training.Pair(student=TEACHER, teacher=TEACHER, vocab_size=16)
    seen = []
    held_out = HeldOut(
        pair, training.Frozen(teacher), eval_batches(ROWS, 2, 7), {"spec": partial(selection.spec_k, k=1)}
    )
    values = held_out(teacher, lambda done, total: seen.append((done, total)))
    assert values["kl"] == 0 and values["top1_agreement"] == 1
    assert values["spec"] == pytest.approx(1, abs=1e-5)
    assert values["cross_entropy"] == values["teacher_cross_entropy"]
    assert seen == [(1, 2), (2, 2)]
