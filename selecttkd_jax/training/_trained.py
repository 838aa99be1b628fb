"""What was trained, out of one checkpoint: without the optimizer's moments, and while the run may go on."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax.training._checkpoint import checksum_record, is_out_of_memory, list_shapes, list_steps
from selecttkd_jax.training._integrity import check_leaves


class Trained(NamedTuple):
    """What a checkpoint says of the student.

    Attributes:
        params: The student's master weights, or its adapters.
        identity: What the run was made with.
    """

    params: Params
    identity: dict[str, Any]


def read_trained(directory: Path, step: int, template: Params) -> Trained:
    """Reads the parameters of one checkpoint and compares them with their checksums; nothing is written or moved.

    Args:
        directory: `OUTPUT/checkpoints`.
        step: Which one.
        template: Shapes, dtypes and shardings of the parameters.

    Raises:
        InputError: There is no such checkpoint, it is damaged, or of another model.
    """
    folder = directory.absolute() / f"step_{step}"
    if not (folder / "record").is_dir():
        steps = list_steps(directory)
        have = f"there are those of the steps {', '.join(map(str, steps))}" if steps else "there is none"
        raise InputError(f"{directory} holds no checkpoint of step {step}: {have}")
    try:
        record = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "record")
        metadata = ocp.PyTreeCheckpointHandler().metadata(folder / "state")  # pyright: ignore[reportArgumentType]
        saved = list_shapes(metadata.tree["params"])
    except Exception as error:  # whatever Orbax and its storage make of bytes that are not theirs
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder} cannot be read ({type(error).__name__}); take another step") from error
    if not isinstance(record, dict) or record.pop("checksum", None) != checksum_record(record):
        raise InputError(f"{folder}: its record of position and checksums has changed since it was saved")
    # Orbax would cut or pad an array of another shape.
    expected = list_shapes(template)
    for name in dict.fromkeys([*expected, *saved]):
        if saved.get(name) != expected.get(name):
            raise InputError(
                f"{folder} is of another model: {name} is {saved.get(name, 'absent')} there and "
                f"{expected.get(name, 'absent')} by the run's config.toml"
            )
    item = {"params": template}
    arguments = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    try:
        params = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder / "state", args=arguments)["params"]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder} cannot be read ({type(error).__name__}); take another step") from error
    for path, check in check_leaves({"params": params}).items():
        if check.checksum != record["checksums"].get(path):
            raise InputError(f"{folder}: {path} has changed since it was saved; take another step")
    return Trained(params, record["identity"])


def in_host_memory(shapes: Params) -> Params:
    """A template that is read to this process's memory; to its first device where JAX was told to leave the CPU out."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = jax.local_devices()[0]
    held = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=held), shapes)
