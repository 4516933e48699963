"""Training curves for TensorBoard."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from mpa_ray.storage.storage import Storage

_FILE_ENTRIES = 100
"""A file is written again for each of its entries, and there is another file after this number of entries."""


class TensorBoard:
    """Writes event files into the run, which TensorBoard reads in the order of their names, as one curve."""

    def __init__(self, storage: Storage, folder: str, attempt: int, first_step: int) -> None:
        """Write the events of one attempt at a training.

        Args:
            storage: The storage of the run.
            folder: The folder of the run for the event files.
            attempt: The number of the attempt, which orders its files after those of earlier attempts.
            first_step: The first step of the attempt. Earlier attempts' events of this step and of later steps are no
                longer shown.
        """
        self._storage = storage
        self._path = f"{folder}/events.out.tfevents.{attempt:04}"
        self._num_files = self._num_entries = 0
        self._content = _record(Event(file_version="brain.Event:2"))
        if attempt:
            self._content += _record(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._content += _record(Event(step=step, summary=summary))
        self._storage.write(f"{self._path}.{self._num_files:06}", bytes(self._content))
        self._num_entries += 1
        if self._num_entries == _FILE_ENTRIES:
            self._num_files, self._num_entries = self._num_files + 1, 0
            self._content = _record(Event(file_version="brain.Event:2"))


def _record(event: Event) -> bytes:
    """An event in the format of TensorFlow's record files."""
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
