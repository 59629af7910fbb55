"""`lading events`, beside a running server: what happened, as lines and as JSON, and then what happens."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pysqlite3 import dbapi2

from tests.capability.content import new_image
from tests.capability.preloaded import Outcome
from tests.capability.repository import Repository
from tests.capability.server import LADING, RegistryProcess

SECONDS = 60.0


def run(registry: RegistryProcess, *arguments: str) -> Outcome:
    return registry.run("events", *arguments)


@contextmanager
def following(registry: RegistryProcess, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it, and its children
    with subprocess.Popen(
        [*LADING, "events", "--follow", "--data", str(registry.data), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def last_seq(registry: RegistryProcess) -> int:
    with closing(dbapi2.connect(registry.data / "lading.db", timeout=10)) as connection:
        return int(connection.execute("SELECT max(seq) FROM feed").fetchone()[0])


def plant(registry: RegistryProcess, *values: str) -> None:
    with closing(dbapi2.connect(registry.data / "lading.db", isolation_level=None, timeout=10)) as connection:
        connection.execute(
            "INSERT INTO feed (at_us, kind, repository, actor, renamed_from) VALUES (?, ?, ?, ?, ?)",
            (1_700_000_000_000_001, *values),
        )


def test_a_push_and_a_delete_are_told_in_order(registry: RegistryProcess, repository: Repository) -> None:
    """A program reads what changed, and where to go on next time."""
    repository.push_image("before")
    since = last_seq(registry)
    image = repository.push_image("v1", new_image())
    repository.request("DELETE", "manifests/v1").expect(202)

    told = [json.loads(line) for line in run(registry, "--since", str(since), "--json").output.splitlines()]

    ours = [entry for entry in told if entry["repository"] == repository.name]
    assert [entry["seq"] for entry in told] == list(range(since + 1, since + 1 + len(told)))
    assert [(entry["kind"], entry["tag"]) for entry in ours] == [
        ("blob.linked", None),
        ("blob.linked", None),
        ("manifest.put", None),
        ("tag.set", "v1"),
        ("tag.deleted", "v1"),
    ]
    assert ours[2].keys() == {"seq", "at", "kind", "repository", "tag", "digest", "actor"}
    assert (ours[2]["digest"], ours[2]["actor"]) == (image.digest, "anonymous")
    assert ours[4]["digest"] is None
    lines = run(registry, "--since", str(since)).output.splitlines()
    assert any(
        line.startswith(f"{ours[3]['seq']}  {ours[3]['at']}  tag.set ")
        and line.endswith(f"  {repository.name}:v1  {image.digest}  by anonymous")
        for line in lines
    )


def test_followers_are_told_what_happens_from_now_on_until_ctrl_c(
    registry: RegistryProcess, repository: Repository
) -> None:
    """It is what an operator looks at, and what a script reacts to, while clients push."""
    repository.push_image("v1")
    since = last_seq(registry)

    with following(registry, "--json", "--since", str(since - 1)) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        images = [repository.push_image(f"v{number}") for number in range(2, 5)]
        found: list[str] = []
        while len(found) < len(images):
            entry = json.loads(process.stdout.readline())
            if (entry["kind"], entry["repository"]) == ("tag.set", repository.name):
                found.append(entry["digest"])
        process.send_signal(signal.SIGINT)
        code = process.wait(SECONDS)

    assert first["seq"] == since
    assert found == [image.digest for image in images]
    assert code == 130


def test_a_follower_whose_reader_has_gone_ends_without_a_word(registry: RegistryProcess) -> None:
    """`| head` has had enough, also while nothing happens."""
    with following(registry, "--since", str(last_seq(registry) - 1)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        code = process.wait(SECONDS)
        errors = process.stderr.read()

    assert (code, errors) == (0, "")


def test_what_somebody_called_themselves_cannot_command_a_terminal(registry: RegistryProcess) -> None:
    """The feed is read on terminals, and not every name in it is ours."""
    since = last_seq(registry)
    plant(registry, "repository.renamed", "team/new", "eve\x1b]0;owned\x07\n\u202eevil", "team/old\x9b1m")

    lines = run(registry, "--since", str(since)).output
    document = run(registry, "--since", str(since), "--json").output

    assert lines.endswith(
        "2023-11-14T22:13:20.000001Z  repository.renamed    team/new  from team/old\\x9b1m"
        "  by eve\\x1b]0;owned\\x07\\n\\u202eevil\n"
    )
    assert document.isascii()
    assert "\x1b" not in document
    assert json.loads(document.splitlines()[-1])["renamed_from"] == "team/old\x9b1m"


def test_a_number_that_was_not_given_yet_is_refused(registry: RegistryProcess) -> None:
    """Nothing would be told, and later changes would be taken for those after it."""
    done = run(registry, "--since", str(last_seq(registry) + 1_000_000))

    assert done.code == 1
    assert done.errors.startswith("error: the last change is ")
    assert os.linesep + " hint: give --since " in done.errors
