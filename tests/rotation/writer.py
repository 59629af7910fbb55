"""A worker's log under load, and nothing else of one: numbered lines of the access log, from a process of its own."""

import sys
import time
from pathlib import Path

from lading import logs


def write(file: Path, name: str, lines: int) -> None:
    """Write numbered lines in small bursts, as requests come, up to 6000 a second where the machine lets us."""
    log = logs.AccessLog("json", file=file)
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
    assert not lost


write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
