"""The embedded event log: folders and files on one machine, shared by any number of processes.

    ROOT/lock                                    held while topics are made, readers registered, segments dropped
    ROOT/<topic>/topic.json                      {"version": 1, "partitions": P, "check": …}; last to appear
    ROOT/<topic>/<partition>/<first offset>.log  segments, `frames`
    ROOT/<topic>/<partition>/highwater           `marks`; its lock is held by whoever flushes
    ROOT/<topic>/readers/<name>                  `positions`

A log, its writers and its readers belong to one process: open another after a fork (a lock would be shared). A writer
or a reader belongs to one thread; several threads may share the log that they come from.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec

from infra.config import LogConfig
from infra.errors import ConfigError, CorruptStateError, RetryableError
from infra.eventlog.base import Record
from infra.eventlog.cursor import Cursor, last_record
from infra.eventlog.filesystem import FileSystem, write_new_file
from infra.eventlog.frames import MAX_FRAME_BYTES, frame_bytes
from infra.eventlog.partition import LOCK_WAIT_S, Partition, create_partition
from infra.eventlog.positions import Positions, create_positions, forget_positions
from infra.eventlog.reader import EmbeddedReader
from infra.eventlog.retention import drop_segments, offset_at
from infra.eventlog.topics import MAX_PARTITIONS, Topic, check_name, decode_topic
from infra.eventlog.writer import EmbeddedWriter

T = TypeVar("T")


class EmbeddedLog:
    """See `base.EventLog`."""

    def __init__(self, root: str, config: LogConfig, fs: FileSystem | None = None) -> None:
        self._fs = fs or FileSystem()
        self._root = root
        self._config = config
        self._topics: dict[str, Topic] = {}
        self._views: dict[tuple[str, int], Partition] = {}
        self._cursors: dict[tuple[str, int], Cursor] = {}
        self._reader_files: dict[tuple[str, str], Positions] = {}
        self._writers: list[EmbeddedWriter] = []
        self._readers: list[EmbeddedReader] = []
        self._guard(f"{root}: opening the log", self._make_root)

    def _make_root(self) -> None:
        if not self._fs.exists(self._root):
            self._fs.make_folder(self._root)
            self._fs.sync_folder(os.path.dirname(os.path.abspath(self._root)))

    @property
    def max_record_bytes(self) -> int:
        return MAX_FRAME_BYTES - frame_bytes(0, 0, 0)

    @property
    def waiting_s(self) -> float:
        return 0.0

    def create_topic(self, topic: str, partitions: int) -> None:
        check_name("topic", topic)
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"topic {topic}: {partitions} partitions; choose 1 to {MAX_PARTITIONS}")
        self._guard(f"{self._root}: creating topic {topic}", lambda: self._create_topic(topic, partitions))
        found = self.partitions(topic)
        if found != partitions:
            raise ConfigError(
                f"topic {topic} in {self._root} has {found} partitions, the configuration says {partitions}: set "
                "log.partitions back, or start a new run folder (keys would change their partition)"
            )

    def _create_topic(self, topic: str, partitions: int) -> None:
        folder = f"{self._root}/{topic}"
        with self._locked():
            self._fs.make_folder(folder)
            if "topic.json" in self._fs.list(folder):
                return
            self._check_remains(folder, partitions)
            self._fs.make_folder(f"{folder}/readers")
            for number in range(partitions):
                create_partition(self._fs, f"{folder}/{number}")
            self._fs.sync_folder(self._root)
            self._fs.sync_folder(folder)  # topic.json says that the rest is there
            write_new_file(self._fs, folder, "topic.json", msgspec.json.encode(Topic.make(topic, 1, partitions)))

    def _check_remains(self, folder: str, partitions: int) -> None:
        """A `topic.json` that was lost: the number of partitions is that of the folders, for keys must not move."""
        numbers = [name for name in self._fs.list(folder) if name.isdigit()]
        used = any(name.endswith(".log") for number in numbers for name in self._fs.list(f"{folder}/{number}"))
        if used and len(numbers) != partitions:
            raise CorruptStateError(
                f"{folder}/topic.json: missing, and there are {len(numbers)} partitions with records where the "
                f"configuration says {partitions}: restore the folder from a copy, or set log.partitions to what it was"
            )

    def partitions(self, topic: str) -> int:
        if topic not in self._topics:
            check_name("topic", topic)
            path = f"{self._root}/{topic}/topic.json"
            try:
                fd = self._fs.open(path)
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{path}: no topic {topic} in this log; create it first, or check the path"
                ) from error
            try:
                self._topics[topic] = decode_topic(topic, path, self._fs.pread(fd, 4_096, 0))
            finally:
                self._fs.close(fd)
        return self._topics[topic].partitions

    def writer(self, topic: str) -> EmbeddedWriter:
        config = self._config
        opened = [self._open(topic, number) for number in range(self.partitions(topic))]
        writer = EmbeddedWriter(
            opened, segment_bytes=config.segment_bytes, flush_bytes=config.flush_bytes, flush_s=config.flush_s
        )
        self._writers = [*(w for w in self._writers if not w.closed), writer]
        return writer

    def reader(self, topic: str, name: str, partitions: Sequence[int] | None = None) -> EmbeddedReader:
        check_name("reader", name)
        count = self.partitions(topic)
        numbers = range(count) if partitions is None else partitions
        for number in numbers:
            self._check_partition(topic, number)

        def register() -> EmbeddedReader:
            with self._locked():
                if name not in self._reader_names(topic):
                    create_positions(self._fs, f"{self._root}/{topic}/readers", name, count)
                positions = Positions(self._fs, f"{self._root}/{topic}/readers/{name}", count)
                return EmbeddedReader({number: self._open(topic, number) for number in numbers}, positions)

        reader = self._guard(f"{self._root}/{topic}: registering reader {name}", register)
        self._readers = [*(r for r in self._readers if not r.closed), reader]
        return reader

    def start_offset(self, topic: str, partition: int) -> int:
        return self._view(topic, partition).start_offset()

    def end_offset(self, topic: str, partition: int) -> int:
        return self._view(topic, partition).highwater.next_offset()

    def offset_at(self, topic: str, partition: int, timestamp_ms: int) -> int:
        return offset_at(self._view(topic, partition), timestamp_ms)

    def last_record(self, topic: str, partition: int) -> Record | None:
        return last_record(self._view(topic, partition))

    def read(self, topic: str, partition: int, offset: int, max_records: int = 256) -> list[Record]:
        view = self._view(topic, partition)
        start, end = view.start_offset(), view.highwater.next_offset()
        if not start <= offset <= end:
            raise ValueError(f"offset {offset} of {topic}/{partition}; the log holds {start} to {end}")
        # A cursor stays where the last read ended, so that reading on costs no search. Taken out while in use: threads.
        cursor = self._cursors.pop((topic, partition), None) or Cursor(view, partition, offset)
        if cursor.offset != offset:
            cursor.seek(offset)
        out: list[tuple[int, Record]] = []
        try:
            cursor.take(max_records, out)
        finally:
            if self._cursors.setdefault((topic, partition), cursor) is not cursor:
                cursor.close()
        return [record for _, record in out]

    def reader_lag(self, topic: str) -> dict[str, int]:
        ends = [self.end_offset(topic, number) for number in range(self.partitions(topic))]
        lags: dict[str, int] = {}
        for name, positions in self._positions(topic).items():
            reads = ((end, positions.read_position(number)) for number, end in enumerate(ends))
            lags[name] = max((end - read for end, read in reads if read is not None), default=0)
        return lags

    def read_positions(self, topic: str, name: str) -> dict[int, int]:
        positions = self._positions(topic).get(name)
        reads = (positions.read_position(number) if positions else None for number in range(self.partitions(topic)))
        return {number: read for number, read in enumerate(reads) if read is not None}

    def forget_reader(self, topic: str, name: str) -> None:
        def forget() -> None:
            with self._locked():
                if name in self._reader_names(topic):
                    forget_positions(self._fs, f"{self._root}/{topic}/readers", name)

        self._guard(f"{self._root}/{topic}: forgetting reader {name}", forget)

    def retain(self, topic: str, *, before_ms: int) -> int:
        dropped = 0
        with self._locked():
            readers = list(self._positions(topic).values())
            for number in range(self.partitions(topic)):
                released = [r.released(number) for r in readers if r.read_position(number) is not None]
                view = self._view(topic, number)
                upto = min(released, default=view.highwater.next_offset())
                dropped += self._guard(f"{view.path}: dropping segments", partial(drop_segments, view, upto, before_ms))
        return dropped

    def close(self) -> None:
        for writer in self._writers:
            writer.abandon()
        for reader in self._readers:
            reader.close()
        for cursor in self._cursors.values():
            cursor.close()
        for view in self._views.values():
            view.close()
        for positions in self._reader_files.values():
            positions.close()
        self._writers, self._readers = [], []
        self._cursors, self._views, self._reader_files = {}, {}, {}

    def _view(self, topic: str, number: int) -> Partition:
        """The partition as this log itself reads it: opened once."""
        key = (topic, number)
        if key not in self._views:
            self._views[key] = self._open(topic, number)
        return self._views[key]

    def _open(self, topic: str, number: int) -> Partition:
        self._check_partition(topic, number)
        path = f"{self._root}/{topic}/{number}"
        return self._guard(f"{path}: opening", lambda: Partition(self._fs, path))

    def _check_partition(self, topic: str, number: int) -> None:
        if not 0 <= number < self.partitions(topic):
            raise ValueError(f"partition {number} of topic {topic}, which has {self.partitions(topic)}")

    def _reader_names(self, topic: str) -> set[str]:
        self.partitions(topic)
        return {name for name in self._fs.list(f"{self._root}/{topic}/readers") if not name.startswith(".")}

    def _positions(self, topic: str) -> dict[str, Positions]:
        """The position files of every registered reader, kept open; a forgotten one may go at any moment."""
        names = self._reader_names(topic)
        for key, file in list(self._reader_files.items()):
            if key[0] == topic and (file.forgotten or key[1] not in names):
                self._reader_files.pop(key).close()
        for name in names:
            if (topic, name) not in self._reader_files:
                path = f"{self._root}/{topic}/readers/{name}"
                with suppress(FileNotFoundError):
                    self._reader_files[topic, name] = Positions(self._fs, path, self.partitions(topic))
        return {n: self._reader_files[topic, n] for n in sorted(names) if (topic, n) in self._reader_files}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = self._fs.open(f"{self._root}/lock", write=True, create=True)
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while not self._fs.try_lock(fd):
                if time.monotonic() > deadline:
                    raise RetryableError(
                        f"{self._root}/lock: held for {LOCK_WAIT_S:.0f} s by another process", after_s=1.0
                    )
                time.sleep(0.001)
            yield
        finally:
            self._fs.close(fd)

    def _guard(self, what: str, action: Callable[[], T]) -> T:
        """Run an action whose failure leaves the log as it was, and say so."""
        try:
            return action()
        except OSError as error:
            raise RetryableError(
                f"{what}: {error.strerror}; make room or mend the disk, then try again", after_s=1.0
            ) from error
