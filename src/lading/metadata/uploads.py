"""Upload sessions: the row says that one exists and whose it is; the staging file's size says how far it is."""

from dataclasses import dataclass

import sqlalchemy as sa

from lading.metadata.database import Prepared
from lading.metadata.schema import uploads
from lading.oci.digest import Algorithm, Digest

NOBODY = "anonymous"
"""Who opens a session without a login, and opened those of older schemas: whoever may push may use it."""


@dataclass(frozen=True, slots=True)
class UploadSession:
    """An open session. `digest` is that of its first `digest_offset` bytes, when this boot has seen them all."""

    id: str
    repository: str
    algorithm: Algorithm
    digest_offset: int | None
    digest: Digest | None


_START = Prepared(
    sa.insert(uploads).values(
        {name: sa.bindparam(name) for name in ("id", "repository", "alg", "actor", "started_us", "expires_us")}
    )
)
_FIND = Prepared(
    sa.select(uploads.c.alg, uploads.c.digest_offset, uploads.c.digest, uploads.c.boot_id).where(
        uploads.c.id == sa.bindparam("upload_id"),
        uploads.c.repository == sa.bindparam("of_repository"),
        (uploads.c.actor == sa.bindparam("for_actor")) | (uploads.c.actor == NOBODY),
        uploads.c.expires_us > sa.bindparam("at_us"),
    )
)
_ADVANCE = Prepared(
    sa.update(uploads)
    .where(uploads.c.id == sa.bindparam("upload_id"))
    .values(
        digest_offset=sa.bindparam("new_offset"), digest=sa.bindparam("new_digest"), boot_id=sa.bindparam("this_boot")
    )
)
_FINISH = Prepared(sa.delete(uploads).where(uploads.c.id == sa.bindparam("upload_id")))
_EXPIRED = Prepared(
    sa.select(uploads.c.id)
    .where(uploads.c.expires_us <= sa.bindparam("at_us"))
    .order_by(uploads.c.expires_us)
    .limit(sa.bindparam("entries"))
)
_COUNT = Prepared(sa.select(sa.func.count()).select_from(uploads))
_COUNT_OF = Prepared(sa.select(sa.func.count()).where(uploads.c.actor == sa.bindparam("of_actor")))
_EXISTS = Prepared(sa.select(uploads.c.id).where(uploads.c.id == sa.bindparam("upload_id")))


def start(  # noqa: PLR0913 - one row
    tx: sa.Connection,
    upload_id: str,
    repository: str,
    algorithm: Algorithm,
    *,
    actor: str,
    at_us: int,
    expires_us: int,
) -> None:
    """Open a session of `actor`."""
    _START.run(
        tx,
        id=upload_id,
        repository=repository,
        alg=int(algorithm),
        actor=actor,
        started_us=at_us,
        expires_us=expires_us,
    )


def count(tx: sa.Connection) -> int:
    """Return how many sessions there are: exact, and ten microseconds for ten thousand, since pages are counted."""
    row = _COUNT.one(tx)
    assert row is not None
    return int(row[0])


def count_of(tx: sa.Connection, actor: str) -> int:
    """Return how many sessions the caller has opened that have not ended; the cap bounds how long this takes."""
    row = _COUNT_OF.one(tx, of_actor=actor)
    assert row is not None
    return int(row[0])


def find(
    tx: sa.Connection, upload_id: str, repository: str, *, actor: str, boot_id: str, at_us: int
) -> UploadSession | None:
    """Return the session when it is open, not expired, of this repository, and the caller's or nobody's.

    A digest of another boot is left out: after a power cut the row can outlive the bytes that it speaks of.
    """
    row = _FIND.one(tx, upload_id=upload_id, of_repository=repository, for_actor=actor, at_us=at_us)
    if row is None:
        return None
    alg, digest_offset, digest, row_boot = row
    algorithm = Algorithm(alg)
    if digest is None or row_boot != boot_id:
        return UploadSession(upload_id, repository, algorithm, None, None)
    return UploadSession(upload_id, repository, algorithm, digest_offset, Digest(algorithm, digest))


def advance(tx: sa.Connection, upload_id: str, *, offset: int, digest: Digest | None, boot_id: str) -> bool:
    """Remember the digest of the session's first `offset` bytes, or forget the last one; False when it is gone."""
    changed = _ADVANCE.run(
        tx,
        upload_id=upload_id,
        new_offset=offset if digest else None,
        new_digest=digest and digest.raw,
        this_boot=boot_id if digest else None,
    )
    return changed == 1


def finish(tx: sa.Connection, upload_id: str) -> bool:
    """End the session: committed, cancelled or expired; False when something else has ended it."""
    return _FINISH.run(tx, upload_id=upload_id) == 1


def expired(tx: sa.Connection, *, at_us: int, entries: int) -> list[str]:
    """Return up to `entries` sessions whose time is over, the oldest first."""
    return [row[0] for row in _EXPIRED.all(tx, at_us=at_us, entries=entries)]


def exists(tx: sa.Connection, upload_id: str) -> bool:
    """Tell whether the session has a row, expired or not."""
    return _EXISTS.one(tx, upload_id=upload_id) is not None
