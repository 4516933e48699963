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
"""The number of entries in a file. A file stays small, because every new entry writes the whole file again."""


class TensorBoard:
    """Writes event files into the run. TensorBoard reads them in the order of their names and shows one curve."""

    def __init__(self, storage: Storage, folder: str, attempt: int, first_step: int) -> None:
        """Write the events of one attempt at a training run.

        Args:
            storage: The storage of the run.
            folder: The folder of the run for the event files.
            attempt: The number of the attempt. It is part of the files' names, so that later attempts are read later.
            first_step: The first step of the attempt. From this step on, TensorBoard no longer shows the events of
                earlier attempts.
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
    """An event as a record of a TFRecord file."""
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", masked_crc32c(length)), content, struct.pack("<I", masked_crc32c(content))]
    )
