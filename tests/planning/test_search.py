"""The search for the largest batch, on peaks that are known everywhere."""

from dataclasses import replace

import jax
import pytest

from selecttkd_jax import planning, runs
from selecttkd_jax.planning import _search as searching
from selecttkd_jax.planning._hlo import Program
from selecttkd_jax.planning._program import CompiledStep, Memory
from selecttkd_jax.planning._search import MOST_COMPILATIONS, search

MANY = 10**9


def searched(peak, limit, start, too_large=MANY):
    """What `search` finds, and how often it had to compile."""
    asked = []

    def measure(units):
        asked.append(units)
        return None if units >= too_large else peak(units)

    return search(measure, limit, start), len(asked)


@pytest.mark.parametrize("start", [1, 7, 60, 500])
@pytest.mark.parametrize("limit", [101, 350, 1000])
def test_a_straight_line_is_found_in_a_few_compilations(start, limit):
    found, compiled = searched(lambda n: 90 + 5 * n, limit, start)
    assert found == (limit - 90) // 5
    assert compiled <= MOST_COMPILATIONS - 2


@pytest.mark.parametrize("bend", [0.9, 1.0, 1.1])
def test_lines_that_bend_a_little_are_found_to_the_row(bend):
    for largest in range(1, 60):
        for start in (1, 2, 10, 70):
            found, _ = searched(lambda n: 90 + round(50 * n**bend), 90 + round(50 * largest**bend), start)
            assert found == largest


@pytest.mark.parametrize("start", [1, 3, 40])
def test_a_compiler_that_gives_up_bounds_the_search(start):
    found, compiled = searched(lambda n: 90 + 5 * n, 192, start, too_large=19)
    assert found == 18
    assert compiled <= MOST_COMPILATIONS


@pytest.mark.parametrize("start", [1, 8])
def test_nothing_fits(start):
    assert searched(lambda n: 90 + 5 * n, 90, start)[0] == 0
    assert searched(lambda n: 90 + 5 * n, MANY, start, too_large=1)[0] == 0


@pytest.mark.parametrize("start", [1, 4, 30])
def test_what_is_found_fits_and_the_next_does_not_where_the_line_bends(start):
    """Steps and a kink, as padding and the compiler's own recomputation make them."""

    def peak(n):
        return 90 + 8 * ((n + 3) // 4) * 4 - max(0, n - 20) * 3

    found, _ = searched(peak, 300, start)
    assert peak(found) <= 300 < peak(found + 1)


def test_batches_grow_by_a_row_for_each_device_and_micro_batch(config, monkeypatch):
    """Instead of compilations: 100 bytes a row without recomputation, 40 with it, and 1000 in any case."""
    asked = []

    def compile_step(config, pair, devices):
        assert pair.remat == config.models.remat
        asked.append(config.data.batch_size)
        working = config.data.batch_size * (40 if config.models.remat == "full" else 100)
        return CompiledStep({}, Program({}, ""), Memory(1000, 0, 0, 0, working, 0), 0.0, 0.0)

    monkeypatch.setattr(searching, "compile_step", compile_step)
    monkeypatch.setattr(searching, "estimate", lambda config, target, step: config.data.batch_size)
    target = planning.parse_target("cpu:8")
    target = replace(target, device=planning.Device("cpu", 9999))
    config = replace(config, training=replace(config.training, micro_batches=2))
    known = compile_step(config, runs.abstract_pair(config), [])
    found = planning.largest_batches(config, runs.abstract_pair(config), target, jax.devices(), known)
    assert [(one.remat, one.batch_size, one.peak, one.costs) for one in found] == [
        ("kept", 80, 9000, 80),
        ("full", 224, 9960, 224),
    ]
    assert all(rows % 16 == 0 for rows in asked) and asked.count(16) == 2  # once known, once with recomputation
