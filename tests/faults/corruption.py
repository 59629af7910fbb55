"""Damage of every kind to what a running registry stores, planted behind its back, and what is then asked of it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pysqlite3 import dbapi2

from tests.capability.content import LARGE_BYTES, SMALL_BYTES, Image, digest_of, new_image, random_content
from tests.capability.repository import Repository
from tests.capability.server import RegistryProcess
from tests.faults.checker import DATABASE

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob or a manifest that was pushed."""

    repository: Repository
    digest: str
    content: bytes
    is_manifest: bool = False

    @property
    def tail(self) -> str:
        """Its place below the repository."""
        return f"{'manifests' if self.is_manifest else 'blobs'}/{self.digest}"

    def push(self) -> None:
        """Push it again, as a client does that was told that it is not there."""
        if self.is_manifest:
            self.repository.put_manifest(self.digest, self.content).expect(201)
        else:
            self.repository.push_blob(self.content, self.digest.partition(":")[0])

    def assert_absent(self) -> None:
        """Assert that neither way of asking finds it."""
        for method in ("GET", "HEAD"):
            reply = self.repository.request(method, self.tail)
            assert reply.status == 404, f"{method} {self.tail}: {reply.status}"

    def assert_whole(self) -> None:
        """Assert that it comes back byte for byte."""
        assert self.repository.request("GET", self.tail).expect(200).body == self.content


# Each changes the files of one object, or of two.

FileDamage = Callable[[Sequence[Path]], None]


def flipped(at: float) -> FileDamage:
    """Flip one bit at that part of the length."""

    def damage(paths: Sequence[Path]) -> None:
        content = bytearray(paths[0].read_bytes())
        content[min(int(len(content) * at), len(content) - 1)] ^= 0x10
        paths[0].write_bytes(content)

    return damage


def _zero_all(paths: Sequence[Path]) -> None:
    paths[0].write_bytes(bytes(paths[0].stat().st_size))


def _zero_a_page(paths: Sequence[Path]) -> None:
    with paths[0].open("r+b") as file:
        file.seek(2 * PAGE_BYTES)
        file.write(bytes(PAGE_BYTES))


def _overwrite(paths: Sequence[Path]) -> None:
    paths[0].write_bytes(os.urandom(paths[0].stat().st_size))


def _truncate(paths: Sequence[Path]) -> None:
    os.truncate(paths[0], paths[0].stat().st_size - 1)


def _empty(paths: Sequence[Path]) -> None:
    os.truncate(paths[0], 0)


def _extend(paths: Sequence[Path]) -> None:
    with paths[0].open("ab") as file:
        file.write(b"\0")


def _delete(paths: Sequence[Path]) -> None:
    paths[0].unlink()


def _swap(paths: Sequence[Path]) -> None:
    one, other = paths
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def _copy_over(paths: Sequence[Path]) -> None:
    """Have the content of a third object of the same length in its place, and that of none in the other's."""
    shutil.copyfile(paths[1], paths[0])
    _zero_all(paths[1:])


def _loop(paths: Sequence[Path]) -> None:
    """Leave what no process can read."""
    paths[0].unlink()
    paths[0].symlink_to(paths[0])


def _folder(paths: Sequence[Path]) -> None:
    paths[0].unlink()
    paths[0].mkdir()


FILES: Mapping[str, tuple[int, FileDamage]] = {
    "first byte": (1, flipped(0.0)),
    "middle byte": (1, flipped(0.5)),
    "last byte": (1, flipped(1.0)),
    "all zero": (1, _zero_all),
    "a page of zeros": (1, _zero_a_page),
    "other bytes": (1, _overwrite),
    "a byte short": (1, _truncate),
    "empty": (1, _empty),
    "a byte long": (1, _extend),
    "gone": (1, _delete),
    "unreadable": (1, _loop),
    "a folder": (1, _folder),
    "swapped": (2, _swap),
    "copied over": (2, _copy_over),
}
ROWS: Mapping[str, Callable[[bytes], bytes]] = {
    "first byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "all zero": lambda data: bytes(len(data)),
    "a byte short": lambda data: data[:-1],
    "a byte long": lambda data: data + b"\0",
    "empty": lambda _: b"",
}


class Drill:
    """A running registry with images and artifacts of several repositories, some of which will be damaged."""

    def __init__(self, server: RegistryProcess) -> None:
        self._server = server
        self._number = 0
        self.damaged: list[Stored] = []
        self.bystanders: list[Stored] = []

    def plant(self, *, files: Sequence[str], payloads: Sequence[str] = (), manifests: Sequence[str] = ()) -> None:
        """Push content for each damage, and do it; beside each there is content that stays as it is."""
        for name in files:
            count, damage = FILES[name]
            hurt = [self._push(LARGE_BYTES).layer for _ in range(count)]
            damage([path for stored in hurt for path in self._server.objects_of(stored.digest)])
            self.damaged += hurt
        for name in payloads:
            stored = self._push(SMALL_BYTES).layer
            self._change(
                "SELECT data FROM blob_payloads WHERE blob_id = (SELECT id FROM blobs WHERE digest = ?)",
                "UPDATE blob_payloads SET data = ? WHERE blob_id = (SELECT id FROM blobs WHERE digest = ?)",
                stored,
                ROWS[name],
            )
            self.damaged.append(stored)
        for name in manifests:
            stored = self._push(SMALL_BYTES).manifest
            self._change(
                "SELECT payload FROM manifests WHERE digest = ?",
                "UPDATE manifests SET payload = ? WHERE digest = ?",
                stored,
                ROWS[name],
            )
            self.damaged.append(stored)
        hurt_digests = {stored.digest for stored in self.damaged}
        self.bystanders = [stored for stored in self.bystanders if stored.digest not in hurt_digests]

    def digests(self) -> list[str]:
        """Return the digests of what was damaged, in order."""
        return sorted(stored.digest for stored in self.damaged)

    def _push(self, layer_bytes: int) -> "_Pushed":
        self._number += 1
        repository = Repository(self._server.wire, f"drill/{self._number % 7}")
        image = new_image(layer_bytes)
        if self._number % 5 == 0:
            strong = random_content(layer_bytes)
            digest = repository.push_blob(strong, "sha512")
            self.bystanders.append(Stored(repository, digest, strong))
        repository.push_image(f"v{self._number}", image)
        pushed = _Pushed(repository, image)
        self.bystanders += [pushed.layer, pushed.manifest, Stored(repository, digest_of(image.config), image.config)]
        return pushed

    def _change(self, read: str, write: str, stored: Stored, damage: Callable[[bytes], bytes]) -> None:
        raw = bytes.fromhex(stored.digest.partition(":")[2])
        with self._database() as connection:
            connection.execute("BEGIN IMMEDIATE")
            ((data,),) = connection.execute(read, (raw,)).fetchall()
            connection.execute(write, (damage(data), raw))
            connection.execute("COMMIT")

    @contextlib.contextmanager
    def _database(self) -> Iterator[dbapi2.Connection]:
        with contextlib.closing(
            dbapi2.connect(self._server.data / DATABASE, isolation_level=None, timeout=30)
        ) as connection:
            yield connection


@dataclass(frozen=True, slots=True)
class _Pushed:
    repository: Repository
    image: Image

    @property
    def layer(self) -> Stored:
        return Stored(self.repository, digest_of(self.image.layers[0]), self.image.layers[0])

    @property
    def manifest(self) -> Stored:
        return Stored(self.repository, self.image.digest, self.image.manifest, is_manifest=True)
