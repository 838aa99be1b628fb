"""Which safetensors files hold a model's weights, and whether their headers say what `config.json` does."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import read_json_object, reading, resolve_inside, shorten, show_name
from selecttkd_jax.models._config import DecoderConfig
from selecttkd_jax.models.files._layouts import list_tensors, shape_on_disk

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

Header = dict[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Stored:
    """Where a tensor is: its file, and its name there."""

    path: Path
    name: str

    def read(self, part: tuple[slice, ...] | None = None) -> np.ndarray:
        """The tensor, or the given part of it."""
        # Opened anew for each tensor: pages of the file that were read stay in memory for as long as it is open.
        with reading(self.path), safe_open(self.path, framework="numpy") as file:
            return file.get_tensor(self.name) if part is None else file.get_slice(self.name)[part]


def check_tensors(config: DecoderConfig, directory: Path) -> dict[str, Stored]:
    """Compares the headers of a directory's safetensors files with what `config` asks for; reads no weights.

    Returns:
        Where each tensor is. A tied head that is stored as well is among them, for `check_tied_head`.

    Raises:
        InputError: Naming the first tensor that is missing, not known, of the wrong shape or not floating point, or the
            file that is missing or torn.
    """
    headers = {path: read_header(path) for path in find_weight_files(directory)}
    stored = _find_tensors(headers)
    # Before a list of a billion layers' tensors is made.
    if config.num_layers > len(stored):
        raise InputError(
            f"{directory}: config.json says num_hidden_layers {config.num_layers}, but there are only {len(stored)} "
            "tensors in all"
        )
    expected = list_tensors(config)
    places: dict[str, Stored] = {}
    # What is there has to be known, of the right shape and floating point.
    for name, path in stored.items():
        if name.endswith("rotary_emb.inv_freq"):
            # Written by old versions of transformers; computed from the config.
            continue
        if name not in expected and not (config.tied_head and name == HEAD):
            raise InputError(f"{path}: unknown tensor {show_name(name)}; config.json does not describe this model")
        weight, _ = expected[EMBEDDING if name not in expected else name]
        check_tensor(path, name, headers[path][name], shape_on_disk(weight, config), "config.json")
        places[name] = Stored(path, name)
    if config.tied_head and EMBEDDING not in places and HEAD in places:
        # Some writers store what head and embedding share under the head's name alone.
        places[EMBEDDING] = places.pop(HEAD)
    # What is known has to be there.
    missing = [name for name in expected if name not in places]
    if missing:
        hint = "; is the head tied (tie_word_embeddings in config.json)?" if missing == [HEAD] else ""
        raise InputError(
            f"{directory}: missing {len(missing)} of {len(expected)} tensors, the first being {missing[0]}{hint}"
        )
    return places


def find_weight_files(directory: Path) -> list[Path]:
    """The safetensors files to read, as transformers would.

    Raises:
        InputError: There are none, or two sets of them; or the index names a file or a tensor that is not there.
    """
    index, single = directory / INDEX_FILE, directory / SINGLE_FILE
    if index.is_file():
        weight_map = _read_weight_map(index)
        names = sorted(set(weight_map.values()))
        if single.is_file() and names != [SINGLE_FILE]:
            raise InputError(
                f"{directory} holds two sets of weights: {SINGLE_FILE}, and those that {INDEX_FILE} lists "
                f"({names[0]}, ...); transformers reads the first, others the second: remove the one that is stale"
            )
        paths = {name: resolve_inside(directory, name, index) for name in names}
        for name, path in paths.items():
            with reading(index):
                there = path.is_file()
            if not there:
                raise InputError(f"{path} does not exist, though {INDEX_FILE} names it")
            header = read_header(path)
            unwritten = [tensor for tensor, file in weight_map.items() if file == name and tensor not in header]
            if unwritten:
                raise InputError(f"{path} has no tensor {show_name(unwritten[0])}, though {INDEX_FILE} says so")
        return list(paths.values())
    if single.is_file():
        return [resolve_inside(directory, SINGLE_FILE, directory)]
    found = sorted(directory.glob("*.safetensors"))
    pickled = sorted(directory.glob("*.bin"))
    if len(found) == 1:
        if pickled:
            raise InputError(
                f"{directory} holds two sets of weights: {found[0].name}, and the pickle {pickled[0].name}, which "
                f"transformers reads where there is no {SINGLE_FILE}; remove the one that is stale"
            )
        return [resolve_inside(directory, found[0].name, directory)]
    if found:
        raise InputError(f"{directory} has {len(found)} safetensors files but no {INDEX_FILE}")
    hint = f"; {pickled[0].name} is a pickle, which is never read: save the model as safetensors" if pickled else ""
    raise InputError(f"{directory} has no *.safetensors file{hint}")


def read_header(path: Path) -> Header:
    """Shape and dtype of each tensor in a safetensors file; opening it also compares its length with the header."""
    with (
        reading(path, problem="is truncated or not a safetensors file; fetch it again"),
        safe_open(path, framework="numpy") as file,
    ):
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {name: (tuple(piece.get_shape()), piece.get_dtype()) for name, piece in slices.items()}


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise InputError(f"{index}: weight_map.{show_name(name)} must be the name of a file, got {shorten(file)}")
    return weight_map


def _find_tensors(headers: dict[Path, Header]) -> dict[str, Path]:
    """The file of every tensor; transformers reads all that a file holds, whatever the index says."""
    found: dict[str, Path] = {}
    for path, header in headers.items():
        for name in sorted(header):
            if found.setdefault(name, path) != path:
                raise InputError(f"tensor {show_name(name)} is in {found[name]} and in {path} again; which one counts?")
    return found


def check_tensor(
    path: Path, name: str, header: tuple[tuple[int, ...], str], expected: tuple[int, ...], source: str
) -> None:
    """Raises InputError unless a tensor has the shape that `source` asks for, and is floating point."""
    shape, dtype = header
    if shape != expected:
        raise InputError(f"{path}: tensor {name} has shape {shape}, but {source} asks for {expected}")
    if dtype not in FLOAT_DTYPES:
        raise InputError(
            f"{path}: tensor {name} has dtype {dtype}, expected one of {', '.join(FLOAT_DTYPES)}; quantised weights "
            "have to be converted first"
        )
