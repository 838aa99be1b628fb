"""Event files that are read as TensorBoard reads them, by their bytes."""

import struct

import pytest

from selecttkd_jax.metrics import MetricsWriter

pytestmark = pytest.mark.one_stack


def read_points(directory):
    """Value by name and step; a start takes away what older files have from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    points = {}
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                points = {key: value for key, value in points.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in points, "a double"
                points[value.tag, event.step] = value.simple_value
    return points


def test_every_point_up_to_a_checkpoint_is_there_once_however_the_process_ends(tmp_path):
    killed = MetricsWriter(tmp_path)
    for step in range(5):
        killed.write({"step": step, "loss": step / 2})
        if step == 3:
            killed.flush()
    assert read_points(tmp_path / "tensorboard").keys() >= {("loss", step) for step in range(4)}
    resumed = MetricsWriter(tmp_path, 3)
    for step in range(4, 7):
        resumed.write({"step": step, "loss": step / 2})
    resumed.close()
    assert read_points(tmp_path / "tensorboard") == {("loss", step): step / 2 for step in range(7)}
    killed.close()


def test_a_full_disk_ends_the_board_and_not_the_run(tmp_path, caplog, monkeypatch):
    writer = MetricsWriter(tmp_path)

    def full(event):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._tensorboard._writer, "write_event", full)
    writer.write({"step": 0, "loss": 1.0, "tar": 0.5})
    writer.flush()
    writer.close()
    assert caplog.text.count("no more is written for TensorBoard: No space left on device") == 1
