"""Checkpoints of the student, its optimizer, the step, the key and the position in the data (Orbax).

The teacher is frozen and never saved. Orbax writes into a temporary directory and renames it, so a kill during a save
leaves the previous checkpoint as the newest.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from selecttkd_jax.array_types import Params
from selecttkd_jax.checks import InputError
from selecttkd_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they are kept, one folder a step.
        keep: How many of the newest are kept.
    """

    def __init__(self, directory: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step")
        handlers = {"state": ocp.StandardCheckpointHandler(), "data": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: dict[str, Any]) -> None:
        """Saves in the background; arrays are copied to the host before this returns."""
        step = int(state.step)
        if step == self.latest_step:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_tree(state)), data=ocp.args.JsonSave(data_state))
        self._manager.save(step, args=args)

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest checkpoint with the shapes, dtypes and shardings of `template`.

        The mesh and the number of processes may be others than when it was saved.

        Args:
            template: A state, or only its shapes (`abstract_state`), so that there is never a second one in memory.

        Raises:
            InputError: When there is no checkpoint, or it holds another model.
        """
        step = self.latest_step
        if step is None:
            raise InputError(f"{self._manager.directory} holds no checkpoint to restore")
        self._check_same_model(step, template)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_tree(template))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        tree = restored["state"]
        key = jax.random.wrap_key_data(tree.pop("key"))
        return TrainState(**tree, key=key), restored["data"]

    def _check_same_model(self, step: int, template: TrainState) -> None:
        # Orbax would notice too, but only while reading, and not in a sentence.
        saved = _shapes(self._manager.item_metadata(step)["state"]["params"])
        expected = _shapes(template.params)
        for name in dict.fromkeys([*expected, *saved]):
            if saved.get(name) != expected.get(name):
                raise InputError(
                    f"{self._manager.directory} holds a checkpoint of another model: {name} is "
                    f"{saved.get(name, 'absent')} there and {expected.get(name, 'absent')} here; choose another output"
                )

    def close(self) -> None:
        """Waits for the save under way."""
        self._manager.close()


def latest_step(directory: Path) -> int | None:
    """The step of the newest whole checkpoint in `directory`, or None; nothing is made, nobody waited for."""
    names = [path.name for path in directory.glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d+", name)), default=None)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a dict of plain arrays: on disk a key is its raw numbers."""
    tree = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {**tree, "key": jax.random.key_data(state.key)}
