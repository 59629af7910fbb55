"""Log files of the real program, with its parent and its workers, while somebody rotates them."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.capability.content import new_image
from tests.capability.program import environment
from tests.capability.repository import Repository
from tests.capability.server import LADING, RegistryProcess, until


def lines(file: Path, **wanted: object) -> list[dict[str, Any]]:
    """Return the lines of a log file that have these fields; none where there is no file."""
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in found if wanted.items() <= line.items()]


def test_files_are_rotated_under_a_running_server(tmp_path: Path) -> None:
    """Renamed, without a word or with the signal that other programs want: the next line is in the new file."""
    events, requests = tmp_path / "events.log", tmp_path / "access.log"
    server = RegistryProcess(tmp_path, {"LADING_LOG__FILE": str(events), "LADING_LOG__ACCESS_FILE": str(requests)})
    server.start()
    try:
        repository = Repository(server.wire, "team/app")
        image = new_image()
        repository.push_blobs(image)
        answer = repository.put_manifest("v1", image.manifest).expect(201)
        pushed = {"route": "manifest", "method": "PUT", "repository": "team/app"}
        assert until(lambda: lines(requests, **pushed) != [])
        (push,) = lines(requests, **pushed)
        assert (push["tag"], push["digest"], push["actor"]) == ("v1", image.digest, "anonymous")
        assert push["request_id"] == answer["X-Request-Id"]
        assert until(lambda: lines(events, event="ready") != [])

        for file in (events, requests):
            file.rename(f"{file}.1")
        before = server.tree()
        for pid in before:
            os.kill(pid, signal.SIGUSR1)
        repository.request("GET", "manifests/v1").expect(200)
        assert until(lambda: lines(requests, route="manifest", method="GET") != [])
        assert server.tree() == before

        os.kill(server.pid, signal.SIGHUP)
        assert until(lambda: lines(events, level="info") != [])
        (reloaded,) = lines(events, level="info")
        assert reloaded["event"].startswith("reloaded")
        server.stop()
        assert not any(path.read_text() for path in tmp_path.glob("std*.log"))
    finally:
        server.kill()


def test_a_log_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """A server whose log nobody finds is worse than one that does not start."""
    changes = {"LADING_LOG__ACCESS_FILE": str(tmp_path / "missing" / "access.log")}
    refused = subprocess.run(
        [*LADING, "serve"], cwd=tmp_path, env=environment(changes), capture_output=True, text=True, check=False
    )

    assert refused.returncode == 1
    assert refused.stderr.startswith("error: the log file")
    assert "hint: make its directory" in refused.stderr
