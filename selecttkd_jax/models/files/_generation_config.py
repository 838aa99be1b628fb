"""`generation_config.json`: where a text ends, for those who let the model write.

transformers and vLLM stop at the `eos_token_id` of this file; where a model has none, at that of `config.json`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selecttkd_jax._outside_files import read_json_object
from selecttkd_jax.models.files._json import write_json

FILE = "generation_config.json"

# Fields of config.json that transformers takes for generation, and only where there is no generation_config.json.
GENERATION_FIELDS = frozenset(
    """
    bos_token_id eos_token_id pad_token_id decoder_start_token_id
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)


def write_stop_ids(directory: Path, hf_config: dict[str, Any], stop_ids: Sequence[int]) -> None:
    """Makes a directory's `generation_config.json` name these stop ids and no others; its other fields stay.

    Args:
        directory: The model's, with or without such a file.
        hf_config: What `config.json` holds; its generation fields stand for a file that is not there.
        stop_ids: Ids at which a response ends.
    """
    path = directory / FILE
    if path.is_file():
        content = read_json_object(path)
    else:
        content = {name: hf_config[name] for name in sorted(GENERATION_FIELDS & hf_config.keys())}
        content = {name: value for name, value in content.items() if value is not None}
    write_json(path, content | {"eos_token_id": as_eos_token_id(stop_ids)})


def as_eos_token_id(stop_ids: Sequence[int]) -> int | list[int]:
    """Stop ids as both config files write them: one as a number, several as a list."""
    return int(stop_ids[0]) if len(stop_ids) == 1 else [int(index) for index in stop_ids]
