import copy
import datetime
from functools import partial
from pathlib import Path

import pytest

from selecttkd_jax import losses, selection
from selecttkd_jax._errors import InputError
from selecttkd_jax.distill import Objective, ObjectiveConfig, Schedule, Schedules
from selecttkd_jax.generation import Sampling
from selecttkd_jax.models import LoraConfig
from selecttkd_jax.runs import config_from_dict, config_to_dict, load_config, save_config
from selecttkd_jax.runs._identity import differences

VALUES = {
    "output": "run",
    "models": {"teacher": "t", "student": "s"},
    "data": {"train": "rows.jsonl", "columns": ["question", "answer"]},
    "optimizer": {"learning_rate": 1},
}


def changed(section, **values):
    copied = copy.deepcopy(VALUES)
    (copied if section is None else copied.setdefault(section, {})).update(values)
    return copied


def test_what_is_saved_reads_back_equal(tmp_path):
    config = config_from_dict(VALUES, "here")
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config
    assert config.data.columns == ("question", "answer") and config.optimizer.learning_rate == 1.0
    assert differences(config_to_dict(config), config_to_dict(load_config(tmp_path / "config.toml"))) == []


def test_options_of_a_template_are_a_table_of_anything(tmp_path):
    kwargs = {"enable_thinking": False, "effort": "high", "limits": {"steps": [1, 2]}}
    config = config_from_dict(changed("data", template_kwargs=kwargs, columns=["a", "b", "c"]), "here")
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config and config.data.template_kwargs == kwargs
    over = load_config(tmp_path / "config.toml", {"data": {"template_kwargs": {"effort": "low"}}})
    assert over.data.template_kwargs == {**kwargs, "effort": "low"}
    changes = differences(config_to_dict(config), config_to_dict(over))
    assert changes == ["data.template_kwargs.effort (high there, low here)"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("data", batchsize=3), r"here: unknown option data.batchsize \(did you mean 'batch_size'\?\)"),
        (changed(None, learning_rate=3.0), r"unknown option learning_rate \(did you mean optimizer.learning_rate\?\)"),
        (changed(None, trainnig={}), r"unknown option trainnig \(did you mean 'training'\?\)"),
        (changed("training", steps="3"), "training.steps: expected int, got '3'"),
        (changed("training", steps=True), "training.steps: expected int, got True"),
        (changed("objective", k=2.5), "objective.k: expected int, got 2.5"),
        (changed("objective", floor={"value": 1}), "objective.floor is an option, not a section"),
        (changed(None, data=3), "data is a section"),
        (changed("training", steps=0), "training.steps must be at least 1, got 0"),
        (changed("models", teacher_dtype="float8"), "models.teacher_dtype must be one of"),
        (changed("objective", verifier="greedy_topk"), "did you mean 'greedy_top_k'"),
        (changed("objective", verifier="accept_all", k=3), "objective.k is an option of greedy_top_k, spec_k"),
        (changed("data", batch_size=6) | {"training": {"micro_batches": 4}}, "micro_batches must divide"),
        ({name: value for name, value in VALUES.items() if name != "models"}, "here: models.student is missing"),
        (VALUES | {"data": {"batch_size": 4}}, "here: data.train is missing"),
        (changed("data", train=""), "here: data.train is empty"),
        (changed(None, seed=-1), r"seed must be in \[0"),
        (changed("optimizer", schedule="cosin"), "optimizer.schedule must be one of .*did you mean 'cosine'"),
        (changed("optimizer", learning_rate=float("inf")), "optimizer.learning_rate must be above 0 and finite"),
        (changed("optimizer", eps=-1.0), "optimizer.eps must be above 0"),
        (changed("data", columns="ab"), "data.columns: expected .*got 'ab'"),
        (changed("data", columns=["a"]), "data.columns must name two or three columns, got a"),
        (changed("data", date="yesterday"), "data.date must be a date such as 2024-07-26, got 'yesterday'"),
        (changed("data", template_kwargs=3), "data.template_kwargs: expected a table, got 3"),
        (
            changed("data", template_kwargs={"day": datetime.date(2024, 7, 26)}),
            "template_kwargs holds what JSON cannot",
        ),
        (changed("lora", rnak=3), r"unknown option lora.rnak \(did you mean 'rank'\?\)"),
        (changed("lora", rank=0), "lora.rank must be at least 1"),
        (changed(None, lora=True), r"lora is a section; write it as \[lora\]"),
        (changed(None, targets=[]), r"unknown option targets \(did you mean lora.targets\?\)"),
        (changed("models", student_dtype="int8"), "models.student_dtype must be one of"),
        (changed("models", student_dtype="bfloat16"), r"without a \[lora\] section all weights are trained"),
        (changed("objective", rejected="forwardkl"), "objective.rejected must be one of .*did you mean 'forward_kl'"),
        (
            changed("objective", rejected="forward_kl", rejected_mu=0.3),
            "rejected_mu is an option of adaptive",
        ),
        (changed("objective", rejected="skew_kl", rejected_alpha=1.0), r"objective.rejected_alpha must be in \[0, 1\)"),
        (changed("objective", rejected_alpha=0.3), "option of objective.rejected, which is not given"),
        (changed("objective", rejected="forward_kl", verifier="accept_all"), "accept_all rejects none"),
        (changed("objective", floor=1.5), r"objective.floor must be in \[0.0, 1.0\], got 1.5"),
        (changed("objective", verifier="entropy"), "objective.verifier entropy needs objective.threshold"),
        (changed("objective", verifier="random"), "needs either objective.rate or objective.of"),
        (changed("objective", verifier="random", rate=0.3, of="spec_k"), "needs either objective.rate or objective.of"),
        (changed("objective", verifier="invert"), "objective.verifier invert is made of another"),
        (
            changed("objective", of="spec_k"),
            "of is an option of invert, random, rescale, not of greedy_top_k",
        ),
        (changed("objective", verifier="rescale", of="spec_k", normalizer="weight"), "divides by it again"),
        (changed("objective", shadows=["spec_j"]), "objective.shadows must be one of .*did you mean 'spec_k'"),
        (changed("objective", shadows=["spec_k", "spec_k"]), "objective.shadows names a verifier twice"),
        (changed("objective", shadows=["entropy"]), "entropy needs objective.threshold"),
        (
            changed("objective", verifier="random", of="spec_k") | {"method": {"name": "distillm2"}},
            "which method distillm2 does not",
        ),
        (changed("objective", floor_end=0.3), 'floor_end needs objective.schedule = "linear" or "cosine"'),
        (changed("objective", schedule="linear"), "objective.schedule linear leads nowhere"),
        (changed("objective", schedule="linear", floor_end=2.0), r"objective.floor_end must be in \[0.0, 1.0\]"),
        (
            changed("objective", schedule="linear", k_end=2, verifier="nucleus"),
            "k_end is an option of greedy",
        ),
        (changed("objective", schedule="cosine", temperature_end=0.0), "temperature_end must be above 0"),
        (
            changed("selection", score="random", fraction=0.2),
            "so does objective.verifier greedy_top_k",
        ),
        (
            changed("selection", score="random", fraction=0.2) | {"method": {"name": "sft"}},
            "ranks the tokens of one stream that a divergence teaches, and method sft",
        ),
        (
            changed("selection", score="error_norm", fraction=0.2)
            | {"method": {"name": "imitkd", "labels": "hard"}, "objective": {"verifier": "accept_all"}},
            'selection.score error_norm reads the labels, which method.labels = "hard" takes from',
        ),
        *(
            (
                {**VALUES, "method": {"name": "imitkd", "labels": "hard"}, "objective": objective},
                f'{option} reads the labels, which method.labels = "hard" takes from',
            )
            for objective, option in (
                ({"verifier": "spec_label"}, "objective.verifier spec_label"),
                ({"verifier": "invert", "of": "label_in_top_k"}, "objective.of label_in_top_k"),
                ({"shadows": ["spec_k", "spec_label"]}, "objective.shadows spec_label"),
            )
        ),
        (changed("objective", verifier="nucleus", tau=0.0), "objective.tau of nucleus must be above 0"),
        (changed("objective", verifier="random", of="nucleus", tau=0.0), "objective.tau of nucleus must be above 0"),
        (changed("objective", shadows=["nucleus"], tau=0.0), "objective.tau of nucleus must be above 0"),
        (
            changed("objective", verifier="nucleus", shadows=["hellinger_gate"], tau=0.7),
            "objective.tau is a mass of nucleus and a distance of hellinger_gate, which are both named",
        ),
        (changed("objective", verifier="invert", of="random", rate=0.3), "what it accepts is random, too"),
        (changed("objective", rejected="reverse_kl", floor=0.0), "objective.rejected has a coefficient of 0"),
        (
            changed("objective", rejected="reverse_kl", floor=0.0, schedule="linear", floor_end=0.0),
            "objective.rejected has a coefficient of 0",
        ),
        (
            VALUES | {"data": {"sources": [{"path": "a.jsonl"}, {"path": "a.jsonl", "split": "train"}]}},
            "the source a.jsonl stands 2 times",
        ),
        (changed("selection", score="randm", fraction=0.2), "did you mean 'random'"),
        (changed("selection", fraction=0.2), "selection.score is missing"),
        (changed("objective", verifier="hellinger"), "objective.expected = true and objective.floor = 0.0"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(InputError, match=message):
        config_from_dict(values, "here")


def test_every_option_survives_saving(tmp_path):
    """No clipping, an expected gate, split names: nothing turns back into its default."""
    values = changed("optimizer", clip_norm=0, schedule="linear")
    values["objective"] = {"verifier": "hellinger", "expected": True, "floor": 0}
    values["data"] |= {"held_out": "x", "held_out_split": "validation"}
    config = config_from_dict(values, "here")
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config


def test_an_empty_lora_section_is_not_an_absent_one(tmp_path):
    """`[lora]` alone is LoRA with every default; without it all weights are trained."""
    config = config_from_dict(changed("lora") | {"models": {**VALUES["models"], "student_dtype": "bfloat16"}}, "here")
    assert config.lora == LoraConfig() and config_from_dict(VALUES, "here").lora is None
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config
    other = config_from_dict(changed("lora", rank=4, targets=["q_proj"]), "here")
    assert other.lora == LoraConfig(rank=4, targets=("q_proj",))
    assert "lora.rank (16 there, 4 here)" in differences(config_to_dict(config), config_to_dict(other))


def test_dtypes_are_left_to_the_machine_unless_they_are_given():
    def dtypes(platform, **models):
        found = config_from_dict(changed("models", **models), "here").on_platform(platform).models
        return found.compute_dtype, found.teacher_dtype

    assert dtypes("cpu") == ("float32", "float32") and dtypes("gpu") == dtypes("tpu") == ("bfloat16", "bfloat16")
    assert dtypes("gpu", teacher_dtype="int8") == ("bfloat16", "int8")
    assert dtypes("gpu", compute_dtype="float32") == ("float32", "float32")
    assert dtypes("cpu", compute_dtype="bfloat16", teacher_dtype="float32") == ("bfloat16", "float32")
    with pytest.raises(InputError, match="a CPU has one memory"):
        dtypes("cpu", remat="offload")


def test_a_run_may_be_moved():
    here, there = config_from_dict(VALUES, "a"), config_from_dict(changed(None, output="elsewhere"), "b")
    assert differences(config_to_dict(here), config_to_dict(there)) == []
    for section, options in (
        (
            "training",
            {"micro_batches": 2, "head_memory_mib": 64, "log_every": 7, "save_every": 3, "keep_checkpoints": 9},
        ),
        ("models", {"remat": "full"}),
        ("mesh", {"fsdp": 2}),
    ):
        smaller = config_from_dict(changed(section, **options), "here")
        assert smaller != here and differences(config_to_dict(here), config_to_dict(smaller)) == []
    longer = config_from_dict(changed("training", steps=1234), "here")
    assert [line.split()[0] for line in differences(config_to_dict(here), config_to_dict(longer))] == ["training.steps"]


def test_what_a_method_samples_with_stays_its_own_where_one_option_is_given():
    for name, temperature, top_p in (("seqkd", 0.0, 1.0), ("gkd", 0.9, 1.0), ("distillm2", 0.8, 0.95)):
        config = config_from_dict(changed("method", name=name, sampling={"max_new_tokens": 48}), "here")
        assert config.method.sampling == Sampling(temperature=temperature, top_p=top_p, max_new_tokens=48)
        warmer = config_from_dict(changed("method", name=name, sampling={"temperature": 0.5}), "here").method.sampling
        assert (warmer.temperature, warmer.top_p) == (0.5, top_p)
        assert config_from_dict(config_to_dict(config), "again") == config


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("output = \n")
    with pytest.raises(InputError, match=r"config.toml is not valid TOML.*line 1"):
        load_config(path)


def test_differences_name_the_option_and_both_values():
    there = config_to_dict(config_from_dict(VALUES, "here"))
    here = config_to_dict(config_from_dict(changed("objective", k=7), "here"))
    assert differences(there, here) == ["objective.k (None there, 7 here)"]


def test_named_objectives_bind_their_options():
    config = ObjectiveConfig(divergence="jensen_shannon", beta=0.3, verifier="spec_k", k=3, floor=0.2, temperature=2.0)
    assert config.build() == Objective(
        partial(losses.jensen_shannon, beta=0.3), partial(selection.spec_k, k=3), floor=0.2, temperature=2.0
    )
    mixed = ObjectiveConfig(rejected="skew_kl + jensen_shannon", rejected_alpha=0.3, rejected_beta=0.4, floor=3.0)
    parts = partial(losses.skew_kl, alpha=0.3), partial(losses.jensen_shannon, beta=0.4)
    assert mixed.build() == Objective(
        losses.forward_kl, selection.greedy_top_k, floor=3.0, rejected=losses.sum_of(*parts)
    )


def test_two_rivals_are_two_files():
    """What they minimise, written out; their losses are held by tests of the objective."""
    files = Path(__file__).parents[2] / "experiments" / "configs" / "selection"
    tropd, eopd = (load_config(files / f"{name}.toml") for name in ("tropd", "eopd"))
    assert tropd.method.name == eopd.method.name == "on_policy"
    assert tropd.data.held_out and eopd.data.held_out  # what they learn from has prompts alone
    assert tropd.objective.build() == Objective(
        losses.reverse_kl,
        selection.spec_label,
        floor=1.0,
        rejected=partial(losses.teacher_top_k_kl, k=16),
    )
    assert eopd.objective.build() == Objective(
        losses.reverse_kl,
        partial(selection.entropy_gate, threshold=0.8),
        floor=1.0,
        rejected=losses.sum_of(losses.reverse_kl, losses.forward_kl),
    )


def test_controls_and_shadows_by_name(tmp_path):
    spec, greedy = partial(selection.spec_k, k=3), partial(selection.greedy_top_k, k=3)
    names = ("greedy_top_k", "random", "entropy")
    built = ObjectiveConfig(verifier="invert", of="spec_k", k=3, shadows=names, threshold=1).build()
    assert Objective(verifier=built.verifier) == Objective(verifier=selection.invert(spec))
    shadows = (("greedy_top_k", greedy), ("random", None), ("entropy", partial(selection.entropy_gate, threshold=1)))
    assert Objective(shadows=built.shadows) == Objective(shadows=shadows)
    for name in ("random", "rescale"):
        config = ObjectiveConfig(verifier=name, of="spec_k", k=3)
        assert Objective(verifier=config.build_verifier()) == Objective(verifier=selection.at_rate_of(spec))
        assert config.expects == (name == "rescale")
    at_rate = ObjectiveConfig(verifier="random", rate=0.4, shadows=("random",)).build()
    gate = partial(selection.random_gate, rate=0.4)
    assert at_rate == Objective(verifier=gate, shadows=(("random", gate),))
    values = changed("objective", verifier="random", of="greedy_top_k", shadows=["spec_k", "random"])
    config = config_from_dict(values, "here")
    save_config(config, tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == config


def test_what_looks_alike_and_is_not_refused():
    """A budget rejects tokens where accept_all does not; two defaults of tau; a coefficient that leaves 0."""
    values = changed("selection", score="teacher_entropy", fraction=0.2)
    values["objective"] = {"verifier": "accept_all", "rejected": "reverse_kl"}
    assert config_from_dict(values, "here").objective.build().rejected == losses.reverse_kl
    both = ObjectiveConfig(verifier="nucleus", shadows=("hellinger_gate",)).build()
    assert (both.verifier, both.shadows) == (selection.nucleus, (("hellinger_gate", selection.hellinger_gate),))
    ObjectiveConfig(verifier="hellinger_gate", tau=0.0)
    ObjectiveConfig(rejected="reverse_kl", floor=0.0, schedule="linear", floor_end=0.1)
    hard = changed("method", name="imitkd", labels="hard") | {"objective": {"verifier": "spec_k"}}
    assert config_from_dict(hard, "here").method.labels == "hard"


def test_schedules_by_name():
    config = ObjectiveConfig(verifier="spec_k", floor=0.1, schedule="cosine", floor_end=0.5, k_end=1, temperature_end=2)
    assert config.build_schedules(10) == Schedules(
        floor=Schedule("cosine", 0.1, 0.5, 10),
        temperature=Schedule("cosine", 1.0, 2, 10),
        k=Schedule("cosine", 5, 1, 10),
    )
    assert (
        ObjectiveConfig().build_schedules(10) == ObjectiveConfig(schedule="constant").build_schedules(10) == Schedules()
    )
