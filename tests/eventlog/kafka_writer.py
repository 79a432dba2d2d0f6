"""A writer to be killed: `python -m tests.eventlog.kafka_writer URL FIRST` writes numbers, prints what is durable."""

import sys

from infra.config import LogConfig
from infra.eventlog import open_log


def main(url, number):
    writer = open_log(url, LogConfig()).writer("t")
    while True:
        for _ in range(7):
            writer.append(0, b"%d" % number, timestamp_ms=number)
            number += 1
        writer.flush()
        print(number, flush=True)


def numbers_in(log):
    """What lies in partition 0, in order."""
    out, offset = [], 0
    while records := log.read("t", 0, offset, 10_000):
        assert [record.offset for record in records] == list(range(offset, offset + len(records)))
        out += [int(bytes(record.value)) for record in records]
        offset += len(records)
    return out


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
