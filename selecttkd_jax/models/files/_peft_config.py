"""PEFT's `adapter_config.json`: as for `config.json`, every field is used, known to be without effect, or refused."""

from pathlib import Path
from typing import Any

from selecttkd_jax._errors import InputError, did_you_mean
from selecttkd_jax._outside_files import reading, shorten
from selecttkd_jax.models._lora import TARGETS, LoraConfig

USED = ("r", "lora_alpha", "target_modules", "use_dora")

# Settings that change what the adapter computes, with the values that we follow; the first is PEFT's default.
FOLLOWED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    # How A and B were drawn. Those that are not listed (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, MiCA) change the base
    # model's weights, which PEFT does again when it loads the adapter, or what is computed with them.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_rslora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None,),
    "exclude_modules": (None,),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "megatron_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "enable_lora": (None,),
}

# Bookkeeping, what matters in training alone, and details of settings above that are off.
WITHOUT_EFFECT = frozenset(
    """
    task_type auto_mapping peft_version base_model_name_or_path revision inference_mode lora_dropout merge_weights
    layers_pattern megatron_core loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config
    ensure_weight_tying
    """.split()
)


def read_adapter_config(description: dict[str, Any], path: Path) -> LoraConfig:
    """What an `adapter_config.json` describes.

    Raises:
        InputError: For a field that is unknown, ill-typed, missing, or asks for something that is not followed here.
    """
    with reading(path):
        _check_names(description, path)
        for name, allowed in FOLLOWED.items():
            value = description.get(name)
            if name == "peft_type" and value is None:
                raise InputError(f"{path} has no peft_type; is it PEFT's?")
            # PEFT writes some of these as null, false or {} alike where they are not used.
            if value and not any(value is known or (value == known and value is not True) for known in allowed):
                raise InputError(
                    f"{path}: {name} = {shorten(value)} is not supported, only {' or '.join(map(repr, allowed))}"
                )
        config = _read_fields(description, path)
    return config


def _check_names(description: dict[str, Any], path: Path) -> None:
    meant = [*USED, *FOLLOWED]
    for name, value in description.items():
        # Each release of PEFT adds switches, and writes all of them where they are off.
        if name not in meant and name not in WITHOUT_EFFECT and value not in (None, False, {}, []):
            raise InputError(
                f"{path}: unknown field {shorten(name)}{did_you_mean(name, meant)}; it might change what the adapter "
                f"computes, so remove it from {path.name} if you know that it does not"
            )


def _read_fields(description: dict[str, Any], path: Path) -> LoraConfig:
    targets = description.get("target_modules")
    if not isinstance(targets, list) or not targets or any(target not in list(TARGETS) for target in targets):
        raise InputError(f"{path}: target_modules must be a list of {', '.join(TARGETS)}; got {shorten(targets)}")
    ordered = tuple(target for target in TARGETS if target in targets)
    rank, alpha, dora = (description.get(name) for name in ("r", "lora_alpha", "use_dora"))
    for name, value, kinds in (("r", rank, int), ("lora_alpha", alpha, int | float)):
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"{path}: {name} must be a number, got {shorten(value)}")
    if dora is not None and not isinstance(dora, bool):
        raise InputError(f"{path}: use_dora must be true or false, got {shorten(dora)}")
    assert isinstance(rank, int) and isinstance(alpha, int | float)
    try:
        return LoraConfig(rank, float(alpha), ordered, bool(dora))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
