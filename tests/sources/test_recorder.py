"""What is said of text that a model wrote: counted here anew, token by token, from the finished batch."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from selecttkd_jax.data import Responses, Rollouts, Rows, eval_batches
from selecttkd_jax.generation import Sampling
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import Recorder, replace_responses, split_prompts

LENGTH, STOPS = 24, (3, 5)
PROMPTS = [[6, 7, 8], [9, 6], [7, 7, 7, 7], [8] * 20]
# Stopped; cut at the limit of eight; stopped at once; cut where the row ends, after four.
ANSWERS = [[10, 11, 10, 11, 10, 3], [12] * 8, [5], [6, 7, 8, 9, 10, 11, 12, 13]]
KEPT = [[10, 11, 10, 11, 10, 3], [12] * 8, [5], [6, 7, 8, 9]]


@pytest.fixture
def batch():
    texts = [np.array([*prompt, 30, 3][:LENGTH], np.int32) for prompt in PROMPTS]
    response = [np.arange(len(text)) >= len(prompt) for text, prompt in zip(texts, PROMPTS, strict=True)]
    (made,) = eval_batches(Rows(tuple(texts), tuple(response), LENGTH, 4), 4, LENGTH)
    return made


def make_recorder(answers=ANSWERS):
    def write(role, sampling):
        def rewrite(state, batch, chosen, key):
            return replace_responses(batch, split_prompts(batch), chosen, answers)

        return rewrite

    return Recorder(write, make_mesh(MeshConfig()), 4, STOPS)


def ask(recorder, role, batch, chosen=(True,) * 4):
    return recorder(role, Sampling())(SimpleNamespace(params={}), batch, np.array(chosen), jax.random.key(0))


def count(responses):
    """The same numbers, by counting."""
    found = {
        "rows": len(responses),
        "length": sum(map(len, responses)) / len(responses),
        "cut": sum(response[-1] not in STOPS for response in responses) / len(responses),
    }
    for size in (1, 2, 4):
        shares = []
        for response in responses:
            ngrams = Counter(tuple(response[at : at + size]) for at in range(len(response) - size + 1))
            if ngrams:
                shares.append(len(ngrams) / ngrams.total())
        found[f"distinct_{size}"] = sum(shares) / len(shares)
    return found


CLOCKS = {"rollouts/seconds", "rollouts/tokens_per_second"}


@pytest.mark.parametrize("chosen", [(True,) * 4, (False, True, False, True), (True, False, True, False)])
def test_lengths_cut_answers_and_repetitions_are_those_of_what_was_written(batch, chosen):
    recorder = make_recorder()
    ask(recorder, "student", batch, chosen)
    numbers, seconds = recorder.report(1)
    expected = count([kept for kept, one in zip(KEPT, chosen, strict=True) if one])
    counted = {name: value for name, value in numbers.items() if name not in CLOCKS}
    assert counted == pytest.approx({f"rollouts/{name}": value for name, value in expected.items()})
    assert 0 < numbers["rollouts/seconds"] == seconds
    total = expected["rows"] * expected["length"]
    assert numbers["rollouts/tokens_per_second"] == pytest.approx(total / seconds)


def test_the_numbers_by_hand(batch):
    recorder = make_recorder()
    ask(recorder, "student", batch)
    numbers = recorder.report(1).numbers
    assert numbers["rollouts/length"] == 19 / 4 and numbers["rollouts/cut"] == 0.5
    assert numbers["rollouts/distinct_1"] == pytest.approx((3 / 6 + 1 / 8 + 1 + 1) / 4)
    assert numbers["rollouts/distinct_2"] == pytest.approx((3 / 5 + 1 / 7 + 1) / 3)
    assert numbers["rollouts/distinct_4"] == pytest.approx((3 / 3 + 1 / 5 + 1) / 3)


def test_a_report_has_what_was_written_since_the_last_one_by_each_model(batch):
    recorder = make_recorder()
    assert recorder.report(1) == ({}, 0)
    ask(recorder, "student", batch)
    ask(recorder, "teacher", batch, (True, False, False, False))
    numbers, seconds = recorder.report(2)
    assert numbers["rollouts/rows"] == 4 and numbers["teacher_rollouts/rows"] == 1
    assert seconds == pytest.approx(numbers["rollouts/seconds"] + numbers["teacher_rollouts/seconds"])
    # Stored text for step 3: nothing is left of step 2's.
    assert recorder.report(3) == ({}, 0)
    # Several batches for one step are one report.
    ask(recorder, "student", batch)
    ask(recorder, "student", batch)
    assert recorder.report(4).numbers["rollouts/rows"] == 8


def test_no_token_at_all_is_no_mean(batch):
    recorder = make_recorder(answers=[[], [], [], []])
    ask(recorder, "student", batch)
    assert {name for name in recorder.report(1).numbers if name not in CLOCKS} == {"rollouts/rows"}


def test_what_a_step_takes_is_the_batch_that_was_placed_last(batch):
    recorder = make_recorder()
    place = recorder.watch(lambda placed: placed)
    assert recorder.taken("student") is None
    hidden = replace(batch, labels=np.full_like(batch.labels, -1))
    other = jax.tree.map(np.zeros_like, batch)
    assert place(Responses(teacher=other, student=hidden)).student is hidden
    recorder.report(7)
    taken = recorder.taken("student")
    assert taken.step == 7 and not recorder.taken("teacher").batch.loss_mask.any()
    np.testing.assert_array_equal(taken.batch.labels[batch.loss_mask], batch.labels[batch.loss_mask])
    place(Rollouts(rows=other, old_log_prob=None, importance=None, advantage=None))
    assert not recorder.taken("student").batch.loss_mask.any()
