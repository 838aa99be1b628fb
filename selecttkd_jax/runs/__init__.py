"""From a configuration to parts to the loop: the one way the command line and the experiments start anything."""

from selecttkd_jax.runs._config import LoggingConfig, ModelsConfig, RunConfig
from selecttkd_jax.runs._evaluate import evaluate, evaluate_students, trained_student
from selecttkd_jax.runs._export import export_checkpoint
from selecttkd_jax.runs._generate import generate
from selecttkd_jax.runs._hosts import Hosts, join_hosts
from selecttkd_jax.runs._prepare import check_room
from selecttkd_jax.runs._prune import Choice, choose_layers, layer_influence, pruning_cost, read_calibration
from selecttkd_jax.runs._push import push
from selecttkd_jax.runs._saved import is_run, open_run
from selecttkd_jax.runs._sections import alternatives, is_required, options_of, section_kinds, table_kind
from selecttkd_jax.runs._server import generate_from_server
from selecttkd_jax.runs._specs import (
    StepSpecs,
    abstract_pair,
    choose_packing,
    model_shardings,
    specify_decoding,
    specify_evaluation,
    specify_step,
)
from selecttkd_jax.runs._toml import config_from_dict, config_to_dict, load_config, save_config
from selecttkd_jax.runs._train import Run, train

__all__ = [
    "read_calibration",
    "pruning_cost",
    "layer_influence",
    "choose_layers",
    "Choice",
    "Hosts",
    "LoggingConfig",
    "ModelsConfig",
    "Run",
    "RunConfig",
    "StepSpecs",
    "abstract_pair",
    "alternatives",
    "check_room",
    "choose_packing",
    "config_from_dict",
    "config_to_dict",
    "evaluate",
    "evaluate_students",
    "export_checkpoint",
    "generate",
    "generate_from_server",
    "is_required",
    "is_run",
    "join_hosts",
    "load_config",
    "model_shardings",
    "open_run",
    "options_of",
    "push",
    "save_config",
    "section_kinds",
    "specify_decoding",
    "specify_evaluation",
    "specify_step",
    "table_kind",
    "train",
    "trained_student",
]
