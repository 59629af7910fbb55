"""The past: what a tag named when, and bringing tags and repositories back while the undo window is open."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from lading.metadata import history, manifests, repositories, tags, times
from lading.metadata.database import Database
from lading.metadata.garbage import Retention
from lading.metadata.history import Event, Moment
from lading.oci.digest import Digest
from lading.oci.errors import BlobUnknown, CommandRefused, ManifestUnknown, NameUnknown
from lading.oci.names import Tag
from lading.storage.disk import DiskStore

_ENTRIES_AT_ONCE = 100
"""How much of a repository one transaction brings back: pushes wait no longer for it than for each other."""
_MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class EventsPage:
    """Events of a tag, the newest first; `following_us` is the moment before which the next page begins."""

    events: Sequence[Event]
    following_us: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What bringing a repository back would set, and show again."""

    repository: str
    repo_id: int
    moment: Moment
    tags: Sequence[tuple[str, Digest]]
    manifests: Sequence[Digest]


@dataclass(slots=True)
class Restored:
    """What came back, and what could not: sentences."""

    tags: int = 0
    manifests: int = 0
    failed: list[str] = field(default_factory=list)


class History:
    """The past of all repositories."""

    def __init__(self, database: Database, store: DiskStore, *, retention: Retention) -> None:
        self._database = database
        self._store = store
        self._retention = retention

    async def events(
        self,
        repository: str,
        tag: str,
        *,
        before_us: int | None = None,
        since_us: int | None = None,
        digest: Digest | None = None,
        entries: int,
    ) -> EventsPage:
        """Return up to `entries` events of the tag, none where nothing is known of it."""
        found = await self._database.scan(
            _events, repository, tag, before_us=before_us, since_us=since_us, digest=digest, entries=entries + 1
        )
        more = 0 < entries < len(found)
        return EventsPage(found[:entries], found[entries - 1].at_us if more else None)

    async def deleters(self, repository: str, tag: str) -> Mapping[int, str]:
        """Return who deleted the tag, by the moment. It reads the whole feed."""
        return await self._database.scan(history.deleters, repository, tag)

    async def find(self, repository: str, tag: Tag, *, at_us: int | None, digest: Digest | None) -> Digest:
        """Return what the tag named: at a moment, or this digest, or, without either, before its last change.

        Raises:
            NameUnknown, ManifestUnknown: it never did, or what it named is gone for good; the message says since when.

        """
        return await self._database.scan(_find, repository, tag.name, at_us=at_us, digest=digest)

    async def restore_tag(self, repository: str, tag: Tag, digest: Digest, *, actor: str) -> bool:
        """Have the tag name that manifest, which is brought back with all below it; False when it did already.

        Raises:
            NameUnknown, ManifestUnknown: the manifest is gone for good.
            BlobUnknown: bytes of it are lost.
            StorageFull: the disk's last room is for deletes.

        """
        self._store.space.refuse_if_scarce()
        if lost := await self._lost(repository, [digest]):
            raise BlobUnknown(lost[digest])
        return await self._database.write(
            _restore_tag, repository, tag.name, digest, actor=actor, at_us=times.now_us(), retention=self._retention
        )

    async def plan(self, repository: str, *, at_us: int | None) -> Plan:
        """Return what the repository was at that moment, or, without one, when it was deleted.

        Raises:
            NameUnknown: no such repository, or it is gone for good; the message says since when.
            ManifestUnknown: what it had then is gone for good.
            CommandRefused: it is not deleted, and no moment is given.

        """
        return await self._database.scan(_plan, repository, at_us=at_us)

    async def restore_repository(self, plan: Plan, *, actor: str, step: Callable[[int], None]) -> Restored:
        """Bring back what is planned, in small pieces; `step` is told before each how much more is done, and may raise.

        Nothing is taken away: a tag that came later stays. One that was cut short can be begun again.

        Raises:
            CommandRefused: the repository is no longer what was planned for.
            StorageFull: the disk's last room is for deletes.

        """
        restored = Restored()
        wanted: list[tuple[str | None, Digest]] = [*plan.tags, *((None, digest) for digest in plan.manifests)]
        for start in range(0, len(wanted), _ENTRIES_AT_ONCE):
            step(min(start, _ENTRIES_AT_ONCE))
            self._store.space.refuse_if_scarce()
            page = wanted[start : start + _ENTRIES_AT_ONCE]
            lost = await self._lost(plan.repository, [digest for _, digest in page])
            done = await self._database.write(
                _restore_page,
                plan,
                [(tag, digest) for tag, digest in page if digest not in lost],
                actor=actor,
                at_us=times.now_us(),
                retention=self._retention,
            )
            restored.tags += done.tags
            restored.manifests += done.manifests
            restored.failed += [
                *done.failed,
                *(f"{tag or digest}: {lost[digest]}" for tag, digest in page if digest in lost),
            ]
        step(0)
        await self._database.write(_finish, plan, actor=actor, at_us=times.now_us())
        return restored

    async def _lost(self, repository: str, digests: Sequence[Digest]) -> dict[Digest, str]:
        """Return those manifests of which bytes are lost, with a sentence that says which."""
        lost: dict[Digest, str] = {}
        for digest, objects in (await self._database.scan(_objects, repository, digests)).items():
            whole = await self._store.has_all([(key, size) for _, key, size in objects])
            gone = [str(blob) for (blob, _, _), there in zip(objects, whole, strict=True) if not there]
            if gone:
                more = f" and of {len(gone) - _MAX_NAMED} more" if len(gone) > _MAX_NAMED else ""
                lost[digest] = (
                    f"the bytes of {', '.join(gone[:_MAX_NAMED])}{more} are lost; "
                    "push an image that has them, then restore again"
                )
        return lost


def _events(  # noqa: PLR0913 - as `history.events`
    tx: sa.Connection,
    repository: str,
    tag: str,
    *,
    before_us: int | None,
    since_us: int | None,
    digest: Digest | None,
    entries: int,
) -> list[Event]:
    found = repositories.find_any(tx, repository)
    if found is None:
        return []
    return history.events(tx, found.id, tag, before_us=before_us, since_us=since_us, digest=digest, entries=entries)


def _find(tx: sa.Connection, repository: str, tag: str, *, at_us: int | None, digest: Digest | None) -> Digest:
    found = repositories.find_any(tx, repository)
    past = [] if found is None else history.namings(tx, found.id, tag)
    chosen = history.choose(past, at_us=at_us, digest=digest)
    if chosen is not None:
        return chosen.digest
    told = history.told_namings(tx, repository, tag)
    was = history.choose(told, at_us=at_us, digest=digest)
    if was is not None and found is not None and manifests.find_any(tx, found.id, was.digest) is not None:
        return was.digest  # the tag's own row has gone, and something else still keeps the manifest
    if was is not None:
        ended_us = history.collected_us(tx, repository, was.digest)
        until = "now" if was.to_us is None else times.to_second(was.to_us)
        gone = "is no longer there" if ended_us is None else f"was removed for good on {times.to_second(ended_us)}"
        raise ManifestUnknown(f"{repository}:{tag} named {was.digest} until {until}; it {gone}")
    if found is None and not told:
        raise NameUnknown(f"there is no repository {repository}")
    raise ManifestUnknown(_never(repository, tag, at_us, digest, ever=bool(past or told)))


def _never(repository: str, tag: str, at_us: int | None, digest: Digest | None, *, ever: bool) -> str:
    if not ever:
        return f"{repository} never had a tag {tag}"
    if digest is not None:
        return f"{repository}:{tag} never named {digest}; see lading tag history {repository}:{tag}"
    if at_us is not None:
        return (
            f"{repository}:{tag} named nothing at {times.to_second(at_us)}; see lading tag history {repository}:{tag}"
        )
    return f"{repository}:{tag} never named anything else"


def _restore_tag(  # noqa: PLR0913 - which tag to what, and who did it when
    tx: sa.Connection, repository: str, tag: str, digest: Digest, *, actor: str, at_us: int, retention: Retention
) -> bool:
    found = repositories.find_any(tx, repository)
    manifest_id = None if found is None else manifests.find_any(tx, found.id, digest)
    if manifest_id is None:
        raise ManifestUnknown(f"{digest} has just been removed from {repository} for good")
    repo_id = repositories.ensure(tx, repository, actor=actor, at_us=at_us)
    shown = manifests.restore(tx, repository, repo_id, manifest_id, actor=actor, at_us=at_us, retention=retention)
    moved = tags.put(tx, repository, repo_id, tag, manifest_id, digest, actor=actor, at_us=at_us, retention=retention)
    return bool(shown) or moved


def _plan(tx: sa.Connection, repository: str, *, at_us: int | None) -> Plan:
    found = repositories.find_any(tx, repository)
    if found is None:
        deleted_us, ended_us = history.ends_of_repository(tx, repository)
        if ended_us is None:
            raise NameUnknown(f"there is no repository {repository}")
        was = "" if deleted_us is None else f" was deleted on {times.to_second(deleted_us)}; it"
        raise NameUnknown(f"{repository}{was} was removed for good on {times.to_second(ended_us)}")
    if at_us is None and found.deleted_us is None:
        deleted_us, _ = history.ends_of_repository(tx, repository)
        if deleted_us is None:
            raise CommandRefused(f"{repository} is not deleted", "name a moment to go back to with --at")
        raise CommandRefused(
            f"{repository} is not deleted; it was last on {times.to_second(deleted_us)}, and has come back since",
            f"to have back what it had before: --at {times.text(deleted_us - 1)}",
        )
    moment = Moment(at_us, found.deleted_us)
    plan = Plan(
        repository,
        found.id,
        moment,
        history.tags_then(tx, found.id, moment),
        history.manifests_gone_since(tx, found.id, moment),
    )
    if not plan.tags and not plan.manifests:
        _refuse_nothing(tx, plan)
    return plan


def _refuse_nothing(tx: sa.Connection, plan: Plan) -> None:
    """Refuse a plan that has nothing, unless it is to bring back a repository that had nothing."""
    ended_us = history.collected_us(tx, plan.repository)
    moment_us = plan.moment.deleted_us if plan.moment.at_us is None else plan.moment.at_us
    if ended_us is not None and moment_us is not None and ended_us >= moment_us:
        raise ManifestUnknown(
            f"what {plan.repository} had until {times.to_second(moment_us)} was removed for good; "
            f"the last of it on {times.to_second(ended_us)}"
        )
    if plan.moment.at_us is not None:
        raise ManifestUnknown(f"{plan.repository} had nothing at {times.to_second(plan.moment.at_us)}")


def _objects(
    tx: sa.Connection, repository: str, digests: Sequence[Digest]
) -> dict[Digest, list[tuple[Digest, str, int]]]:
    found = repositories.find_any(tx, repository)
    if found is None:
        return {}
    ids = {digest: manifests.find_any(tx, found.id, digest) for digest in digests}
    return {digest: manifests.objects_under(tx, one) for digest, one in ids.items() if one is not None}


def _restore_page(
    tx: sa.Connection,
    plan: Plan,
    page: Sequence[tuple[str | None, Digest]],
    *,
    actor: str,
    at_us: int,
    retention: Retention,
) -> Restored:
    _refuse_if_changed(tx, plan)
    restored = Restored()
    for tag, digest in page:
        manifest_id = manifests.find_any(tx, plan.repo_id, digest)
        if manifest_id is None:
            restored.failed.append(f"{tag or digest}: {digest} has just been removed for good")
            continue
        where = (tx, plan.repository, plan.repo_id)
        restored.manifests += manifests.restore(*where, manifest_id, actor=actor, at_us=at_us, retention=retention)
        if tag is not None:
            restored.tags += tags.put(*where, tag, manifest_id, digest, actor=actor, at_us=at_us, retention=retention)
    return restored


def _finish(tx: sa.Connection, plan: Plan, *, actor: str, at_us: int) -> None:
    _refuse_if_changed(tx, plan)
    repositories.restored(tx, plan.repository, plan.repo_id, actor=actor, at_us=at_us)


def _refuse_if_changed(tx: sa.Connection, plan: Plan) -> None:
    """Let pushes come between, but no other deletion and no other name."""
    found = repositories.find_any(tx, plan.repository)
    if found is None or found.id != plan.repo_id or found.deleted_us not in {None, plan.moment.deleted_us}:
        raise CommandRefused(
            f"{plan.repository} was collected, deleted or renamed meanwhile", "look at it, then restore it again"
        )
