"""A worker's log under load, and nothing else of one. It stays until its standard input ends, as a worker would."""

import sys
import time
from pathlib import Path

from lading import logs


def write(place: str, name: str, lines: int) -> None:
    """Write numbered lines in small bursts, as requests come, to a file or the journal."""
    log = logs.AccessLog("journal") if place == "journal" else logs.AccessLog("json", file=Path(place))
    lost: list[int] = []
    with logs.in_background(lost.append):
        for number in range(lines):
            log.write(
                request_id=f"{name}-{number}",
                method="GET",
                route="blob",
                repository="library/alpine",
                tag=None,
                digest="sha256:" + 64 * "a",
                actor=name,
                status=200,
                sent_bytes=1_234_567,
                received_bytes=0,
                duration_us=1234,
                client="127.0.0.1",
            )
            if number % 30 == 0:
                time.sleep(0.005)
        sys.stdin.read()
    assert not lost


write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
