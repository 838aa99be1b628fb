"""A budget of tokens: which are kept, against a sort in NumPy; scores against the float64 oracle."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracle import divergences as oracle

from selecttkd_jax import selection
from selecttkd_jax._errors import InputError

B, T, V = 3, 5, 17
rng = np.random.default_rng(6)
STUDENT, TEACHER = rng.normal(0, 2, (2, B, T, V)).astype(np.float32)
LABELS = rng.integers(0, V, (B, T)).astype(np.int32)
MASK = np.arange(T) < np.array([5, 3, 4])[:, None]
SCORE_ORACLES = {
    "student_entropy": lambda q, p, y: oracle.entropy(q),
    "teacher_entropy": lambda q, p, y: oracle.entropy(p),
    "entropy_gap": lambda q, p, y: oracle.entropy(q) - oracle.entropy(p),
    "error_norm": lambda q, p, y: np.linalg.norm(oracle.softmax(q) - np.eye(V)[y]),
    "label_uncertainty": lambda q, p, y: 1 - oracle.softmax(p)[y],
    "forward_kl": lambda q, p, y: oracle.forward_kl(q, p)[0],
    "reverse_kl": lambda q, p, y: oracle.reverse_kl(q, p)[0],
    "hellinger": lambda q, p, y: oracle.hellinger(q, p)[0],
}


def test_every_score_by_name_against_its_definition():
    from selecttkd_jax.selection._calling import call_with_labels

    assert set(selection.SCORES) == {*SCORE_ORACLES, "random"}
    for name, definition in SCORE_ORACLES.items():
        found = call_with_labels(selection.SCORES[name], "score", STUDENT, TEACHER, LABELS)
        wanted = [[definition(STUDENT[b, t], TEACHER[b, t], LABELS[b, t]) for t in range(T)] for b in range(B)]
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("keep", ["highest", "lowest"])
def test_what_is_kept_is_what_a_sort_keeps(keep):
    scores = rng.normal(size=(B, T)).astype(np.float32)
    sign = -1 if keep == "highest" else 1
    config = {"score": "error_norm", "keep": keep}

    def kept(**options):
        return selection.SelectionConfig(**config, **options).build().keep(jnp.asarray(scores), MASK)

    order = sorted(zip(*np.nonzero(MASK), strict=True), key=lambda place: sign * scores[place])
    wanted = np.zeros((B, T), bool)
    for place in order[: round(0.4 * MASK.sum())]:
        wanted[place] = True
    np.testing.assert_array_equal(kept(fraction=0.4), wanted)
    row_by_row = np.zeros((B, T), bool)
    for b in range(B):
        for t in sorted(np.flatnonzero(MASK[b]), key=lambda t: sign * scores[b, t])[: round(0.4 * MASK[b].sum())]:
            row_by_row[b, t] = True
    np.testing.assert_array_equal(kept(fraction=0.4, per_sequence=True), row_by_row)
    beyond = scores >= 0.2 if keep == "highest" else scores <= 0.2
    np.testing.assert_array_equal(kept(threshold=0.2), MASK & beyond)


def test_before_its_first_step_everything_is_kept_and_nan_ranks_last():
    budget = selection.SelectionConfig(score="forward_kl", fraction=0.25, after_step=3).build()
    scores = jnp.zeros((B, T)).at[0, 0].set(jnp.nan).at[0, 1].set(1.0)
    assert budget.keep(scores, MASK, 2).sum() == MASK.sum()
    later = budget.keep(scores, MASK, 3)
    assert later.sum() == 3 and later[0, 1] and not later[0, 0]


def test_what_does_not_go_together_is_named():
    for options, message in (
        ({"score": "entropy", "fraction": 0.1}, "selection.score must be one of"),
        ({"score": "random"}, "needs either selection.fraction or selection.threshold"),
        ({"score": "random", "fraction": 0.1, "threshold": 0.1}, "needs either"),
        ({"score": "random", "fraction": 1.1}, r"selection.fraction must be in \[0, 1\]"),
        ({"score": "random", "threshold": 0.1, "per_sequence": True}, "are of a fraction"),
        ({"score": "random", "fraction": 0.1, "keep": "best"}, "selection.keep must be one of highest, lowest"),
        ({"score": "random", "fraction": 0.1, "after_step": -1}, "selection.after_step must be at least 0"),
    ):
        with pytest.raises(InputError, match=message):
            selection.SelectionConfig(**options)
