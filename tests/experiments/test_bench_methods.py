"""The campaign over all methods: its runs are configurations, and its result files keep one line a run."""

import bench_methods
import pytest
from bench_methods import SELECTIONS, Case, replace_lines

from selecttkd_jax.methods import METHODS

pytestmark = pytest.mark.one_stack


@pytest.mark.parametrize("method", METHODS)
def test_every_run_is_a_configuration(method, tmp_path):
    for selection in SELECTIONS:
        if method == "sft" and selection != "off":
            continue
        config = Case(method, selection).config(tmp_path)
        assert config.method.name == method
        if config.method.sampling is not None:
            assert config.method.sampling.max_new_tokens == bench_methods.NEW
            assert config.method.sampling.temperature == METHODS[method]().sampling.temperature


def test_a_run_takes_the_place_of_an_older_one(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_methods, "RESULTS", tmp_path)
    for method, selection, value in (("gkd", "off", 1), ("kd", "spec_k", 2), ("kd", "off", 3), ("gkd", "off", 4)):
        key = {"method": method, "selection": selection}
        replace_lines("methods.csv", key, [key | {"step": step, "kl": value} for step in (0, 10)])
    lines = (tmp_path / "methods.csv").read_text().splitlines()
    assert lines == [
        "method,selection,step,kl",
        *("kd,off,0,3", "kd,off,10,3", "kd,spec_k,0,2", "kd,spec_k,10,2", "gkd,off,0,4", "gkd,off,10,4"),
    ]


def test_a_run_in_a_line():
    rows = [{"step": 0, "held_out/kl": 2.0, "held_out/tar_greedy_top_5": 0.5}]
    rows += [
        {"step": step, "tar": step / 10, "step_seconds": 2.0, "learning_seconds": 1.5, "rollouts/seconds": 0.5}
        | {"rollouts/length": 8.0, "rollouts/tokens_per_second": 16.0}
        for step in range(1, 11)
    ]
    rows[1]["step_seconds"] = 99.0  # it compiled
    rows[-1] |= {"held_out/kl": 1.0, "held_out/tar_greedy_top_5": 0.75}
    found = bench_methods.summarise(rows)
    assert found == {
        **{"kl_before": 2.0, "kl_after": 1.0, "held_out_tar_before": 0.5, "held_out_tar_after": 0.75},
        **{"tar": 0.55, "length": 8.0, "cut": "", "distinct_4": ""},
        **{"step_s": 2.0, "learning_s": 1.5, "writing_s": 0.5, "writing_tokens_per_s": 16.0},
    }
