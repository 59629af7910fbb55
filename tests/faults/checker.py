"""Looks at a data directory as an auditor would: what the database says against the bytes on disk, V1 to V10.

It shares no code with the registry, only the file formats. The server may run; the checker reads one moment of it.
"""

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pysqlite3 import dbapi2

ALGORITHMS = {1: "sha256", 2: "sha512"}
DATABASE = "lading.db"
_CONTENT = (
    *("manifests", "manifest_blobs", "manifest_children", "tags", "tag_history", "repositories", "repo_blobs"),
    *("blobs", "blob_extents", "blob_payloads", "doomed_objects", "gc_blob_queue", "gc_manifest_queue", "uploads"),
)

Row = tuple[Any, ...]


@dataclass(slots=True)
class RepositoryState:
    """What a repository holds for those who ask it: visible blobs, live manifests, and what its tags name."""

    blobs: set[str] = field(default_factory=set)
    manifests: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "RepositoryState":
        """Return one that can be changed by itself."""
        return RepositoryState(set(self.blobs), set(self.manifests), dict(self.tags))


class Checker:
    """The auditor of one data directory. Objects are hashed at the first look only, unless `rehash` is asked for."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._hashed: set[str] = set()

    def problems(self, *, rehash: bool = False) -> list[str]:
        """Return a sentence for each invariant that does not hold."""
        if rehash:
            self._hashed.clear()
        with _Snapshot(self._data / DATABASE) as snapshot:
            return [
                *snapshot.damage(),
                *snapshot.feed_problems(),
                *snapshot.history_problems(),
                *snapshot.manifest_problems(),
                *snapshot.payload_problems(),
                *snapshot.reuse_problems(),
                *self._object_problems(snapshot),
                *self._session_problems(snapshot),
            ]

    def states(self) -> dict[str, RepositoryState]:
        """Return what each repository holds, by the tables."""
        with _Snapshot(self._data / DATABASE) as snapshot:
            return snapshot.states()

    def leftovers(self, *, of_open_sessions: bool = False) -> list[str]:
        """Return the files that no row accounts for; with `of_open_sessions` also those of sessions still open.

        An object that a cut-short commit has made belongs to its session for as long as that is open.
        """
        # Files before rows: by then each has had its session's row, and a commit swaps that for an extent at once.
        files = self._object_files()
        staged = sorted(entry.name for entry in (self._data / "uploads").iterdir())
        with _Snapshot(self._data / DATABASE) as snapshot:
            named = set(snapshot.object_keys())
            open_sessions = set() if of_open_sessions else snapshot.sessions()
        strays = [key for key in files if key not in named and key.partition(".")[2] not in open_sessions]
        return [
            *(f"object {key} has no row" for key in strays),
            *(f"staging file {name} has no row" for name in staged if name not in open_sessions),
        ]

    def remains(self) -> list[str]:
        """Return which tables that speak of content still have rows, and all files: nothing, once all is collected."""
        with _Snapshot(self._data / DATABASE) as snapshot:
            counts = snapshot.counts(_CONTENT)
        files = [*self._object_files(), *(entry.name for entry in (self._data / "uploads").iterdir())]
        return [*(f"{count} {table}" for table, count in counts.items() if count), *files]

    def reused(self) -> list[str]:
        """Return a sentence for each object that is to be removed although a blob is there: never, at any moment."""
        with _Snapshot(self._data / DATABASE) as snapshot:
            return list(snapshot.reuse_problems())

    def kinds(self) -> Counter[str]:
        """Return how often the feed tells of each kind of change."""
        with _Snapshot(self._data / DATABASE) as snapshot:
            return snapshot.kinds()

    def unreferenced(self, *, before_us: int) -> int:
        """Return how many blobs, stored before that moment, no manifest refers to, not even a deleted one."""
        with _Snapshot(self._data / DATABASE) as snapshot:
            return snapshot.unreferenced(before_us)

    def _object_files(self) -> list[str]:
        objects = self._data / "objects"
        return [f"{path.parent.name}/{path.name}" for path in objects.glob("*/*")]

    def _object_problems(self, snapshot: "_Snapshot") -> Iterator[str]:
        """Look for blobs whose file is missing, cut short or something else (V2, V5)."""
        for digest, size, object_key in snapshot.extents():
            path = self._data / "objects" / object_key
            if not path.is_file():
                yield f"blob {digest}: its object {object_key} is not there"
            elif path.stat().st_size != size:
                yield f"blob {digest}: its object has {path.stat().st_size} bytes, its row says {size}"
            elif object_key not in self._hashed:
                self._hashed.add(object_key)
                if _digest_of_file(path, digest.partition(":")[0]) != digest:
                    yield f"blob {digest}: its object {object_key} is something else"

    def _session_problems(self, snapshot: "_Snapshot") -> Iterator[str]:
        """Hold what a session remembers of its bytes against its staging file."""
        for upload_id, offset, digest in snapshot.remembered_digests():
            path = self._data / "uploads" / upload_id
            if not path.is_file() or path.stat().st_size < offset:
                yield f"session {upload_id}: fewer bytes staged than the {offset} it remembers"
            elif _digest_of_file(path, digest.partition(":")[0], offset) != digest:
                yield f"session {upload_id}: its first {offset} bytes are not {digest}"


class _Snapshot:
    """One moment of the database, opened for reading only."""

    def __init__(self, path: Path) -> None:
        self._connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True, timeout=10, isolation_level=None)
        self._rows("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _rows(self, statement: str) -> list[Row]:
        rows: list[Row] = self._connection.execute(statement).fetchall()
        return rows

    def counts(self, tables: Iterable[str]) -> dict[str, int]:
        """Return how many rows each table has."""
        return {table: self._rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    def kinds(self) -> Counter[str]:
        """Return how often the feed tells of each kind of change."""
        return Counter(dict(self._rows("SELECT kind, count(*) FROM feed GROUP BY kind")))

    def unreferenced(self, before_us: int) -> int:
        """Return how many blobs from before that moment no manifest refers to."""
        ((count,),) = self._rows(
            "SELECT count(*) FROM blobs b WHERE NOT EXISTS (SELECT 1 FROM manifest_blobs m WHERE m.blob_id = b.id)"
            f" AND b.created_us < {before_us:d}"
        )
        return int(count)

    # What SQLite itself says

    def damage(self) -> Iterator[str]:
        """Yield what the two built-in checks find."""
        for (line,) in self._rows("PRAGMA integrity_check"):
            if line != "ok":
                yield f"integrity_check: {line}"
        for row in self._rows("PRAGMA foreign_key_check"):
            yield f"foreign_key_check: {row}"

    # The feed

    def feed_problems(self) -> Iterator[str]:
        """Look for gaps in the numbers, and for tables that hold something else than the feed replayed (I6)."""
        events = self._rows("SELECT seq, kind, repository, tag, alg, digest, renamed_from FROM feed ORDER BY seq")
        numbers = [event[0] for event in events]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"feed: {len(numbers)} rows, numbered {numbers[:1]} to {numbers[-1:]}"
        replayed = _replay(events)
        for name, state in self.states().items():
            if (told := replayed.pop(name, None)) != state:
                yield f"feed: {name} is {state} in the tables, {told} by the feed"
        for name in replayed:
            yield f"feed: tells of {name}, which the tables do not have"

    def states(self) -> dict[str, RepositoryState]:
        """Return what each repository holds."""
        states = {row[0]: RepositoryState() for row in self._rows("SELECT name FROM repositories")}
        for name, alg, digest in self._rows(
            "SELECT r.name, b.alg, b.digest FROM repo_blobs l JOIN repositories r ON r.id = l.repo_id"
            " JOIN blobs b ON b.id = l.blob_id WHERE l.hidden_us IS NULL"
        ):
            states[name].blobs.add(_text(alg, digest))
        for name, alg, digest in self._rows(
            "SELECT r.name, m.alg, m.digest FROM manifests m JOIN repositories r ON r.id = m.repo_id"
            " WHERE m.deleted_us IS NULL"
        ):
            states[name].manifests.add(_text(alg, digest))
        for name, tag, alg, digest in self._rows(
            "SELECT r.name, t.name, m.alg, m.digest FROM tags t JOIN repositories r ON r.id = t.repo_id"
            " JOIN manifests m ON m.id = t.manifest_id"
        ):
            states[name].tags[tag] = _text(alg, digest)
        return states

    # Tags and their history

    def history_problems(self) -> Iterator[str]:
        """Hold open rows against tags, and the rows of a tag against the moves that the feed tells of (V1, V10)."""
        current = set(self._rows("SELECT repo_id, name, manifest_id FROM tags"))
        open_rows = self._rows("SELECT repo_id, name, manifest_id FROM tag_history WHERE to_us IS NULL")
        if Counter(open_rows) != Counter(current):
            yield f"tag history: open rows and tags differ in {sorted(set(open_rows) ^ current)}"
        for row in self._rows(
            "SELECT t.repo_id, t.name FROM tags t JOIN manifests m ON m.id = t.manifest_id"
            " WHERE m.deleted_us IS NOT NULL OR m.repo_id <> t.repo_id"
        ):
            yield f"tag {row}: names a manifest that is deleted or not its repository's"
        trimmed = bool(self._rows("SELECT 1 FROM passes WHERE name = 'trim history'"))
        told: dict[tuple[str, str], list[str]] = defaultdict(list)
        for kind, name, tag, alg, digest, renamed_from in self._rows(
            "SELECT kind, repository, tag, alg, digest, renamed_from FROM feed"
            " WHERE kind IN ('tag.set', 'repository.renamed') ORDER BY seq"
        ):
            if kind == "tag.set":
                told[name, tag].append(_text(alg, digest))
            else:
                for key in [key for key in told if key[0] == renamed_from]:
                    told[name, key[1]] = told.pop(key)
        for key, rows in self._history().items():
            moves = told.pop(key, [])
            if moves[-len(rows) if trimmed else 0 :] != [digest for digest, _, _ in rows]:
                yield f"tag history of {key}: not the moves that the feed tells of"
            ends = [(to_us, following[1]) for (_, _, to_us), following in itertools.pairwise(rows)]
            if any(to_us is None or to_us > from_us for to_us, from_us in ends):
                yield f"tag history of {key}: rows overlap"
        if not trimmed:
            yield from (f"tag history of {key}: has no rows" for key in told)

    def _history(self) -> dict[tuple[str, str], list[tuple[str, int, int | None]]]:
        history = defaultdict(list)
        for name, tag, alg, digest, from_us, to_us in self._rows(
            "SELECT r.name, h.name, m.alg, m.digest, h.from_us, h.to_us FROM tag_history h"
            " JOIN repositories r ON r.id = h.repo_id JOIN manifests m ON m.id = h.manifest_id ORDER BY h.id"
        ):
            history[name, tag].append((_text(alg, digest), from_us, to_us))
        return history

    # Manifests

    def manifest_problems(self) -> Iterator[str]:
        """Look for live manifests that are not their digest, are not counted, or lack what they refer to (V2)."""
        held = self._held()
        counts: Counter[int] = Counter()
        for manifest_id, repo_id, alg, digest, size, payload in self._rows(
            "SELECT id, repo_id, alg, digest, size, payload FROM manifests WHERE deleted_us IS NULL"
        ):
            counts[repo_id] += 1
            name = _text(alg, digest)
            if size != len(payload) or _digest_of(payload, ALGORITHMS[alg]) != name:
                yield f"manifest {name}: its payload is something else"
                continue
            for descriptor in _described(json.loads(payload)):
                if (descriptor["digest"], descriptor["size"]) not in held[manifest_id]:
                    yield f"manifest {name}: its repository does not hold {descriptor}"
        for repo_id, name, counted in self._rows("SELECT id, name, manifest_count FROM repositories"):
            if counted != counts[repo_id]:
                yield f"repository {name}: {counts[repo_id]} live manifests, counted {counted}"

    def _held(self) -> dict[int, set[tuple[str, int]]]:
        """Return, for each manifest, the digests and sizes that its foreign keys hold and its repository shows."""
        held: dict[int, set[tuple[str, int]]] = defaultdict(set)
        for manifest_id, alg, digest, size in [
            *self._rows(
                "SELECT m.id, b.alg, b.digest, b.size FROM manifest_blobs r JOIN manifests m ON m.id = r.manifest_id"
                " JOIN blobs b ON b.id = r.blob_id JOIN repo_blobs l ON l.repo_id = m.repo_id AND l.blob_id = b.id"
                " WHERE l.hidden_us IS NULL"
            ),
            *self._rows(
                "SELECT r.parent_id, c.alg, c.digest, c.size FROM manifest_children r"
                " JOIN manifests c ON c.id = r.child_id"
            ),
        ]:
            held[manifest_id].add((_text(alg, digest), size))
        return held

    # Blobs

    def payload_problems(self) -> Iterator[str]:
        """Look for blobs without bytes or in two places, and for bytes in the database that are something else (V5)."""
        for alg, digest, size, data, extents in self._rows(
            "SELECT b.alg, b.digest, b.size, p.data, (SELECT count(*) FROM blob_extents e WHERE e.blob_id = b.id)"
            " FROM blobs b LEFT JOIN blob_payloads p ON p.blob_id = b.id"
        ):
            name = _text(alg, digest)
            if (data is not None) + extents != 1:
                yield f"blob {name}: its bytes are in {(data is not None) + extents} places"
            elif data is not None and (len(data) != size or _digest_of(data, ALGORITHMS[alg]) != name):
                yield f"blob {name}: its bytes in the database are something else"

    def extents(self) -> list[tuple[str, int, str]]:
        """Return the digest, the size and the object key of each blob that is a file."""
        return [
            (_text(alg, digest), size, object_key)
            for alg, digest, size, object_key in self._rows(
                "SELECT b.alg, b.digest, b.size, e.object_key FROM blob_extents e JOIN blobs b ON b.id = e.blob_id"
            )
        ]

    def reuse_problems(self) -> Iterator[str]:
        """Look for objects that are to be removed although a blob is there, as with keys that are used again (I2)."""
        for (object_key,) in self._rows(
            "SELECT object_key FROM blob_extents INTERSECT SELECT object_key FROM doomed_objects"
        ):
            yield f"object {object_key}: doomed, and yet a blob's"

    def object_keys(self) -> list[str]:
        """Return the keys of all objects that a row accounts for."""
        return [
            row[0]
            for row in self._rows("SELECT object_key FROM blob_extents UNION SELECT object_key FROM doomed_objects")
        ]

    # Sessions

    def sessions(self) -> set[str]:
        """Return the ids of open upload sessions."""
        return {row[0] for row in self._rows("SELECT id FROM uploads")}

    def remembered_digests(self) -> list[tuple[str, int, str]]:
        """Return the sessions that remember the digest of their first bytes: id, offset, digest."""
        return [
            (upload_id, offset, _text(alg, digest))
            for upload_id, offset, alg, digest in self._rows(
                "SELECT id, digest_offset, alg, digest FROM uploads WHERE digest IS NOT NULL"
            )
        ]


def expire_sessions(data: Path) -> None:
    """Let the time of all open sessions be over. The server must be stopped."""
    _change(data, "UPDATE uploads SET expires_us = 1")


def expire_leases(data: Path) -> None:
    """Let the time of all leases be over. The server must be stopped."""
    _change(data, "UPDATE repo_blobs SET keep_until_us = 1")
    _change(data, "UPDATE gc_blob_queue SET review_after_us = 1")


def _change(data: Path, statement: str) -> None:
    connection = dbapi2.connect(str(data / DATABASE), isolation_level=None)
    try:
        connection.execute(statement)
    finally:
        connection.close()


def _replay(events: Sequence[Row]) -> dict[str, RepositoryState]:
    states: dict[str, RepositoryState] = defaultdict(RepositoryState)
    for _, kind, repository, tag, alg, digest, renamed_from in events:
        if not repository:  # of no repository any more, such as a blob that nothing refers to
            continue
        match kind:
            case "repository.renamed":
                states[repository] = states.pop(renamed_from)
            case "repository.deleted":
                states[repository] = RepositoryState()
            case "repository.collected":
                states.pop(repository)
            case _:
                _replay_content(states[repository], kind, tag, alg and _text(alg, digest))
    return states


def _replay_content(state: RepositoryState, kind: str, tag: str, digest: str) -> None:
    match kind:
        case "blob.linked":
            state.blobs.add(digest)
        case "blob.deleted" | "blob.unlinked":
            state.blobs.discard(digest)
        case "manifest.put" | "manifest.restored":
            state.manifests.add(digest)
        case "manifest.deleted":
            state.manifests.discard(digest)
        case "tag.set":
            state.tags[tag] = digest
        case "tag.deleted":
            state.tags.pop(tag, None)


def _described(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    config = [document["config"]] if "config" in document else []
    return (*config, *document.get("layers", ()), *document.get("manifests", ()))


def _text(alg: int, raw: bytes) -> str:
    return f"{ALGORITHMS[alg]}:{raw.hex()}"


def _digest_of(content: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def _digest_of_file(path: Path, algorithm: str, size_bytes: int | None = None) -> str:
    """Return the digest of a file, or of its first bytes."""
    hasher = hashlib.new(algorithm)
    left = path.stat().st_size if size_bytes is None else size_bytes
    with path.open("rb") as file:
        while left and (piece := file.read(min(left, 1 << 20))):
            hasher.update(piece)
            left -= len(piece)
    return f"{algorithm}:{hasher.hexdigest()}"
