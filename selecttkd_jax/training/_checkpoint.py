"""Checkpoints of the student, its optimizer, the step, the key and the position in the data (Orbax).

The teacher is frozen and never saved. Orbax writes into a temporary directory and renames it, so a kill during a save
leaves the previous checkpoint as the newest. With the arrays go their checksums and what the run was made with; what is
restored is compared with them, for a disk may hand back other bits than it was given.
"""

import dataclasses
import errno
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_manager import StepAlreadyExistsError

from selecttkd_jax._array_types import Params
from selecttkd_jax._errors import InputError
from selecttkd_jax._outside_files import first_line
from selecttkd_jax.training._integrity import LeafCheck, check_leaves, list_not_finite
from selecttkd_jax.training._state import TrainState

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint that was read back whole.

    Attributes:
        state: The training state.
        position: Where the source stood.
        identity: What the run was made with, as it was saved.
        pending: The evaluators that were due after the step, and not asked.
    """

    state: TrainState
    position: dict[str, Any]
    identity: dict[str, Any]
    pending: tuple[str, ...] = ()


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they are kept, one folder a step.
        keep: How many of the newest are kept.
        identity: What the run is made with, as plain JSON data; goes into every checkpoint.
    """

    def __init__(self, directory: Path, keep: int = 2, identity: Mapping[str, Any] | None = None):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix="step")
        handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
        self._directory = directory.resolve()
        self._identity = dict(identity or {})
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        position: dict[str, Any],
        checks: Mapping[str, LeafCheck] | None = None,
        *,
        pending: Sequence[str] = (),
    ) -> None:
        """Saves in the background; arrays are copied to the host before this returns.

        Args:
            state: What to save.
            position: Where the source stands.
            checks: `check_leaves(state)`, where it was computed already.
            pending: The evaluators that were due, and not asked.

        Raises:
            InputError: The state is not finite, or the directory would not take it, or the save before this one failed.
            MemoryError, JaxRuntimeError: There is no memory for the copy.
        """
        step = int(state.step)
        if step == self.latest_step:
            return
        checks = check_leaves(state) if checks is None else checks
        if broken := list_not_finite(checks):
            raise InputError(f"step {step}: {broken} hold NaN or infinity; the state is not saved")
        record = {
            "step": step,
            "position": position,
            "identity": self._identity,
            "checksums": {path: check.checksum for path, check in checks.items()},
            "pending": list(pending),
        }
        record["checksum"] = checksum_record(record)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_tree(state)), record=ocp.args.JsonSave(record))
        with self._writing():
            try:
                # Forced, since Orbax passes over any step below the newest folder's without a word.
                taken = self._manager.save(step, args=args, force=True)
            except StepAlreadyExistsError:
                taken = False
        if not taken:
            raise InputError(
                f"{self._directory} takes no checkpoint of step {step}: a folder of that step, or of a later one, was "
                "put there by others; move it away and start again"
            )

    def restore(self, template: TrainState) -> Restored:
        """Restores the newest sound checkpoint with the shapes, dtypes and shardings of `template`.

        The mesh and the number of processes may be others than when it was saved. A checkpoint that is damaged is named
        in the log and set aside as `damaged_step_N`, where an older one is sound; a run of several processes is stopped
        there, and told what to move away.

        Args:
            template: A state, or only its shapes (`abstract_state`), so that there is never a second one in memory.

        Raises:
            InputError: When there is no checkpoint, or none that is sound and of this model.
        """
        faults: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, fault = self._try(step, template)
            if found is not None:
                self._set_aside(faults, step)
                return found
            faults[step] = fault
        if not faults:
            raise InputError(f"{self._directory} holds no checkpoint to restore")
        listed = "; ".join(f"step {step}: {fault}" for step, fault in faults.items())
        raise InputError(f"{self._directory} holds no checkpoint to resume from: {listed}; choose another output")

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
            InputError: It failed.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save under way, and for the threads of the manager; raises nothing that `wait` would not."""
        with self._writing():
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside it, whatever Orbax and its storage raise is an InputError, but for memory that ran out."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            left = latest_step(self._directory)
            resumes = "nothing was saved before" if left is None else f"the same command resumes from step {left}"
            said = _full_disk(error) or first_line(error)[:160]  # TensorStore appends all its options
            raise InputError(f"{self._directory}: a checkpoint could not be written ({said}); {resumes}") from error

    def _try(self, step: int, template: TrainState) -> tuple[Restored | None, str]:
        """The checkpoint of a step, or what is wrong with it.

        Raises:
            InputError: It is damaged, in a run of several processes. Another one may have read its own part whole, and
                then waits for this one: only the end of this one reaches it.
        """
        try:
            return self._read(step, template), ""
        except _Damaged as error:
            fault = str(error)
        except Exception as error:  # whatever Orbax and its storage make of bytes that are not theirs
            if is_out_of_memory(error) or _is_passing(error):
                raise
            said = (str(error).strip() or "no more is said").splitlines()[0]
            fault = f"it cannot be read ({type(error).__name__}: {said[:160]})"  # TensorStore appends all its options
        if jax.process_count() > 1:
            raise InputError(
                f"{self._directory / f'step_{step}'}: {fault}; move that folder away, on the storage that all "
                "processes see, and start all of them again: the checkpoint before it is taken then"
            )
        return None, fault

    def _read(self, step: int, template: TrainState) -> Restored:
        # Orbax would notice another model, too, but only while reading, and not in a sentence.
        saved = list_shapes(self._manager.item_metadata(step)["state"]["params"])
        expected = list_shapes(template.params)
        for name in dict.fromkeys([*expected, *saved]):
            if saved.get(name) != expected.get(name):
                raise _Damaged(
                    f"it is of another model: {name} is {saved.get(name, 'absent')} there and "
                    f"{expected.get(name, 'absent')} here"
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_tree(template))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=args)
        tree, record = restored["state"], restored["record"]
        state = TrainState(**tree | {"key": jax.random.wrap_key_data(tree["key"])})

        # What came back, against what was written.
        if not isinstance(record, dict) or "checksum" not in record:
            raise _Damaged("it has no checksums, as those of versions before 0.2; that version can resume it")
        if record.pop("checksum") != checksum_record(record):
            raise _Damaged("its record of position and checksums has changed since it was saved")
        if not int(state.step) == record["step"] == step:
            raise _Damaged(f"the folder of step {step} holds step {record['step']}")
        checks = check_leaves(state)
        changed = [path for path, check in checks.items() if check.checksum != record["checksums"].get(path)]
        if changed or len(checks) != len(record["checksums"]):
            raise _Damaged(f"{(changed or ['the state'])[0]} has changed since it was saved")
        return Restored(state, record["position"], record["identity"], tuple(record.get("pending", ())))

    def _set_aside(self, faults: Mapping[int, str], sound: int) -> None:
        """Moves damaged checkpoints out of the way of later saves, and says so."""
        if not faults:
            return
        for step, fault in faults.items():
            logger.warning(
                "checkpoint of step %d: %s. It is kept as damaged_step_%d; step %d is sound", step, fault, step, sound
            )
            aside = self._directory / f"damaged_step_{step}"
            number = 1
            while aside.exists():
                number += 1
                aside = self._directory / f"damaged_step_{step}.{number}"
            (self._directory / f"step_{step}").rename(aside)
        self._manager.reload()


def list_steps(directory: Path) -> list[int]:
    """The steps of the whole checkpoints in `directory`, in their order; nothing is made, nobody waited for."""
    names = (path.name for path in directory.glob("step_*"))
    return sorted(int(name.removeprefix("step_")) for name in names if re.fullmatch(r"step_\d+", name))


def latest_step(directory: Path) -> int | None:
    """The step of the newest whole checkpoint in `directory`, or None."""
    return max(list_steps(directory), default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host."""
    # TensorStore says RESOURCE_EXHAUSTED of a full disk, too.
    exhausted = "RESOURCE_EXHAUSTED" in first_line(error) and _full_disk(error) is None
    return isinstance(error, MemoryError) or exhausted


def _full_disk(error: BaseException | None) -> str | None:
    """What the system said of its disk, wherever in an error or its causes it is told."""
    while error is not None:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def _is_passing(error: Exception) -> bool:
    """Whether a read failed for reasons that are not the file's: another try may find it whole."""
    return isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def checksum_record(record: Mapping[str, Any]) -> int:
    """Of what lies beside a checkpoint's arrays."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def list_shapes(params: Params) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter by its path."""
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _as_tree(state: TrainState) -> dict[str, Any]:
    """The state as a dict of plain arrays: on disk a key is its raw numbers."""
    tree = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {**tree, "key": jax.random.key_data(state.key)}
