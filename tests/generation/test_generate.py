"""Decoding with a cache against decoding without one, and what a caller of `generate` relies on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selecttkd_jax import models
from selecttkd_jax._errors import InputError
from selecttkd_jax.generation import Sampling, generate, lay_out
from selecttkd_jax.sharding import MeshConfig, make_mesh

CONFIG = models.DecoderConfig(
    vocab_size=53,
    hidden_size=24,
    mlp_size=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    tied_head=True,
    init_scale=0.4,  # far from uniform logits, so that rounding decides no argmax
)
PARAMS = models.init_params(CONFIG, jax.random.key(0))
# Short, equal, and on both sides of a padding bucket's edge.
LENGTHS = [3, 1, 17, 31, 32, 33, 3, 40]
PROMPTS = [np.random.default_rng(length * 10 + n).integers(0, 53, length).tolist() for n, length in enumerate(LENGTHS)]
NEW_TOKENS = 12
GREEDY = Sampling(temperature=0, max_new_tokens=NEW_TOKENS)
SAMPLED = Sampling(temperature=1.5, top_p=0.95, max_new_tokens=NEW_TOKENS)
KEY = jax.random.key(7)


def answer(prompts=PROMPTS, *, sampling=GREEDY, stop_ids=(), slots=3, key=KEY, **options):
    return generate(CONFIG, PARAMS, prompts, sampling=sampling, stop_ids=stop_ids, key=key, slots=slots, **options)


@pytest.fixture(scope="module")
def cache_free():
    """Greedy responses of NEW_TOKENS tokens, each token from the whole text read afresh, one prompt at a time."""
    width = max(LENGTHS) + NEW_TOKENS

    @jax.jit
    def next_token(ids, length):
        positions = jnp.arange(width)[None, :]
        segments = (positions < length).astype(jnp.int32)
        hidden, _ = models.forward(CONFIG, PARAMS, ids[None, :], positions, segments)
        return jnp.argmax(models.head_logits(CONFIG, PARAMS, hidden)[0, length - 1])

    responses = []
    for prompt in PROMPTS:
        text = list(prompt)
        for _ in range(NEW_TOKENS):
            padded = np.zeros(width, np.int32)
            padded[: len(text)] = text
            text.append(int(next_token(padded, len(text))))
        responses.append(text[len(prompt) :])
    return responses


@pytest.mark.parametrize("slots", [1, 3, 100])
def test_greedy_equals_decoding_without_a_cache(cache_free, slots):
    assert len({tuple(response) for response in cache_free}) == len(PROMPTS), "a model that always says the same"
    assert answer(slots=slots) == cache_free


def test_responses_end_with_the_first_of_several_stop_ids(cache_free):
    unstopped = set(cache_free[0])
    starts = ((cache_free[7], 0), (cache_free[2], 4), (cache_free[5], 6))
    stops = {next(token for token in response[start:] if token not in unstopped) for response, start in starts}
    expected = []
    for response in cache_free:
        ends = [n for n, token in enumerate(response) if token in stops]
        expected.append(response[: ends[0] + 1] if ends else response)
    lengths = {len(response) for response in expected}
    assert {1, NEW_TOKENS} <= lengths and len(lengths) > 2, "immediately, never, and in between"
    assert answer(stop_ids=sorted(stops)) == expected


def test_a_batch_that_stops_at_once_gives_one_token_each(cache_free):
    assert answer(stop_ids=sorted({response[0] for response in cache_free})) == [[r[0]] for r in cache_free]


@pytest.mark.parametrize("max_new_tokens", [1, 5])
def test_max_new_tokens_cuts_every_response(cache_free, max_new_tokens):
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    assert answer(sampling=sampling, slots=8) == [response[:max_new_tokens] for response in cache_free]


def test_the_key_alone_decides_what_is_sampled():
    prompts = PROMPTS[:5]
    responses = answer(prompts, sampling=SAMPLED)
    assert answer(prompts, sampling=SAMPLED, slots=5) == responses
    assert answer(prompts, sampling=SAMPLED, key=jax.random.key(8)) != responses


def test_equal_prompts_get_responses_of_their_own():
    responses = answer([[1, 2, 3]] * 3, sampling=SAMPLED)
    assert len({tuple(response) for response in responses}) == 3
    # Two draws at one step with one key would repeat the token over and over.
    assert all(len(set(response)) > 2 for response in responses)


def test_sampled_first_tokens_follow_the_models_distribution():
    draws = 2000
    [logits] = models.logits(models.Pretrained(CONFIG, PARAMS, {}), jnp.array([PROMPTS[0]]))[:, -1]
    sampling = Sampling(temperature=2.0, max_new_tokens=1)
    tokens = [token for [token] in answer([PROMPTS[0]] * draws, sampling=sampling, slots=draws)]
    frequencies = np.bincount(tokens, minlength=53) / draws
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 2.0), atol=4 * np.sqrt(0.25 / draws))


def test_bfloat16_compute_answers_within_the_vocabulary():
    for response in answer(PROMPTS[:3], dtype=jnp.bfloat16):
        assert len(response) == NEW_TOKENS
        assert all(0 <= token < 53 for token in response)


@pytest.mark.parametrize("slots", [1, 3, 100])
def test_each_answer_is_handed_over_once_as_it_ends(slots):
    handed = []
    responses = answer(slots=slots, on_answer=lambda index, tokens: handed.append((index, tokens)))
    assert sorted(handed) == list(enumerate(responses))


def test_a_long_answer_holds_up_no_other(cache_free):
    # All stop at their first token, but for the prompt that is read first, which meets no stop id.
    longest = LENGTHS.index(max(LENGTHS))
    stops = {response[0] for response in cache_free} - set(cache_free[longest])
    short = [PROMPTS[index] for index, response in enumerate(cache_free) if response[0] in stops]
    handed = []
    prompts = [PROMPTS[longest], *short * 6]
    answer(prompts, slots=2, stop_ids=sorted(stops), on_answer=lambda index, tokens: handed.append(index))
    assert len(prompts) > NEW_TOKENS and handed[-1] == 0


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_prompts_left_out_change_no_other_answer(sampling):
    whole = answer(sampling=sampling)
    rest = answer(sampling=sampling, answered=[0, 3, 7])
    assert rest == [[] if index in (0, 3, 7) else response for index, response in enumerate(whole)]


@pytest.mark.parametrize("mesh", [MeshConfig(data=2), MeshConfig(fsdp=2, tensor=2)], ids=["data", "fsdp+tensor"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_mesh_changes_no_answer(sampling, mesh):
    alone = answer(sampling=sampling)
    mesh = make_mesh(mesh)
    with jax.set_mesh(mesh):
        params = lay_out(mesh, CONFIG, PARAMS)
        assert generate(CONFIG, params, PROMPTS, sampling=sampling, stop_ids=(), key=KEY, slots=4) == alone


def test_groups_of_prompts_change_no_answer():
    prompts = [prompt[: 1 + n % len(prompt)] for n in range(10) for prompt in PROMPTS]
    assert answer(prompts, slots=64) == answer(prompts, slots=5)  # read by fours, and one by one


def test_nothing_is_compiled_after_each_bucket_was_seen_once():
    compiled = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    answer(sampling=SAMPLED, stop_ids=[3, 5])
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        others = [[(token * 7 + 1) % 53 for token in prompt[:-1] or prompt] for prompt in PROMPTS[::-1]]
        answer(others + others[:3] + [PROMPTS[7]], sampling=SAMPLED, stop_ids=[1, 2, 8], key=jax.random.key(1))
        assert compiled == []
        answer(sampling=Sampling(temperature=1.5, max_new_tokens=NEW_TOKENS + 1))
        assert compiled, "what is counted is not what is compiled"
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_no_prompts_no_responses():
    assert answer([]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1], [2, 53]]}, r"prompt 1 has a token id outside \[0, 53\)"),
        ({"prompts": [[-1]]}, "prompt 0 has a token id outside"),
        ({"stop_ids": [53]}, r"stop id 53 is outside \[0, 53\)"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
    ],
)
def test_bad_requests_are_refused_by_name(options, message):
    with pytest.raises(InputError, match=message):
        answer(**options)
