"""The text that a writer puts into a batch is the model's own, and stands where a stored response would."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax.data import Rows, eval_batches
from selecttkd_jax.generation import Sampling, generate
from selecttkd_jax.sharding import MeshConfig, make_mesh
from selecttkd_jax.sources import Writers, replace_responses, split_prompts
from selecttkd_jax.training import Frozen, Pair

LENGTH = 24
STOPS = (3, 5)


def make_rows(count=4, seed=0):
    random = np.random.default_rng(seed)
    tokens, response = [], []
    for row in range(count):
        prompt, answer = 3 + row, 4 + row % 3
        tokens.append(random.integers(6, 40, prompt + answer).astype(np.int32))
        response.append(np.arange(prompt + answer) >= prompt)
    return Rows(tuple(tokens), tuple(response), LENGTH, count)


def batch_of(rows):
    (batch,) = eval_batches(rows, len(rows), LENGTH)
    return batch


def test_prompts_are_what_stands_before_the_last_response():
    rows = make_rows()
    for prompt, tokens, response in zip(split_prompts(batch_of(rows)), rows.tokens, rows.response, strict=True):
        np.testing.assert_array_equal(prompt, tokens[~response])
    # Two turns: the first one belongs to the prompt of the second.
    tokens, response = np.arange(6, 16, dtype=np.int32), np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1], bool)
    (prompt,) = split_prompts(batch_of(Rows((tokens,), (response,), LENGTH, 1)))
    np.testing.assert_array_equal(prompt, tokens[:7])


def test_a_batch_whose_responses_are_its_own_stays_what_it_is():
    rows = make_rows()
    batch = batch_of(rows)
    answers = [tokens[mask] for tokens, mask in zip(rows.tokens, rows.response, strict=True)]
    again = replace_responses(batch, split_prompts(batch), np.ones(len(rows), bool), answers)
    jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_rows_that_are_not_chosen_stay_and_long_answers_are_cut_where_the_row_ends():
    batch = batch_of(make_rows())
    chosen = np.array([True, False, True, False])
    found = replace_responses(batch, split_prompts(batch), chosen, [[7] * 30] * 4)
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new[~chosen], old[~chosen]), found, batch)
    for row in np.flatnonzero(chosen):
        prompt = 3 + row
        assert found.segment_ids[row].sum() == LENGTH and found.loss_mask[row].sum() == LENGTH - prompt
        assert (found.input_ids[row, prompt:] == 7).all() and found.loss_mask[row, prompt - 1]
        assert (found.labels[row][found.loss_mask[row]] == 7).all() and not found.loss_mask[row, -1]


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2), MeshConfig(fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_text_is_what_generate_writes_with_the_same_keys(mesh, role):
    config = models.DecoderConfig(44, 16, 24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.3)
    student, teacher = (models.init_params(config, jax.random.key(seed)) for seed in (1, 2))
    rows, key, sampling = make_rows(), jax.random.key(9), Sampling(temperature=1.0, max_new_tokens=10)
    batch, mesh = batch_of(rows), make_mesh(mesh)
    pair = Pair(student=config, teacher=config, vocab_size=40)
    with jax.set_mesh(mesh):
        write = Writers(mesh, pair, Frozen(teacher=teacher), STOPS, longest_prompt=6)
        found = write(role, sampling)(SimpleNamespace(params=student), batch, np.ones(len(rows), bool), key)
    expected = generate(
        config,
        {"student": student, "teacher": teacher}[role],
        [prompt.tolist() for prompt in split_prompts(batch)],
        sampling=sampling,
        stop_ids=STOPS,
        key=key,
        vocab_size=40,
    )
    for row, answer in enumerate(expected):
        prompt = 3 + row
        np.testing.assert_array_equal(found.input_ids[row, prompt : prompt + len(answer)], answer)
        assert found.loss_mask[row].sum() == len(answer) and found.segment_ids[row].sum() == prompt + len(answer)
    assert any(len(answer) < 10 and answer[-1] in STOPS for answer in expected) or len(expected) == 4
    assert max(max(answer) for answer in expected) < 40


def test_other_prompts_weights_and_choices_compile_nothing():
    """Fewer slots than rows, so that they are refilled; a shorter longest prompt has the shapes of the run's."""
    config = models.DecoderConfig(44, 16, 24, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.3)
    mesh, sampling, compiled = make_mesh(MeshConfig()), Sampling(max_new_tokens=6), []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    def write(seed, chosen, slots=2):
        pair = Pair(student=config, teacher=None, vocab_size=40)
        rewrite = Writers(mesh, pair, Frozen(), STOPS, longest_prompt=40, slots=slots)("student", sampling)
        state = SimpleNamespace(params=models.init_params(config, jax.random.key(seed)))
        keys = jax.random.split(jax.random.key(seed), 4)
        with jax.set_mesh(mesh):
            return rewrite(state, batch_of(make_rows(seed=seed)), np.array(chosen), keys)

    write(0, [True] * 4)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        found = write(1, [True, False, True, True])
        assert compiled == []
        several = write(1, [True, False, True, True], slots=4)
        assert compiled, "what is counted is not what is compiled"
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    jax.tree.map(np.testing.assert_array_equal, found, several)


def test_ids_that_pad_the_head_are_never_written():
    config = models.DecoderConfig(44, 16, 24, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, init_scale=0.01)
    params = models.init_params(config, jax.random.key(0))
    sampling = Sampling(temperature=5.0, max_new_tokens=40)
    ask = {"sampling": sampling, "stop_ids": (), "key": jax.random.key(1)}
    assert max(max(answer) for answer in generate(config, params, [[1, 2]] * 8, vocab_size=9, **ask)) < 9
    assert max(max(answer) for answer in generate(config, params, [[1, 2]] * 8, **ask)) >= 40
    assert jnp.isfinite(params["embedding"]).all()
