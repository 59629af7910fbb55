"""Reading the feed: each change once, in order, and an error rather than a gap."""

import sqlalchemy as sa

from lading.metadata import feed
from lading.metadata.feed import Change
from lading.metadata.verify import ReadOnlyDatabase
from lading.oci.errors import CommandRefused

_ENTRIES = 1000


class FeedReader:
    """Reads on from the change `after`; None begins with the oldest that is kept.

    One writer at a time gives the numbers, so what is read after a number is all there ever will be after it.
    """

    def __init__(self, database: ReadOnlyDatabase, *, after: int | None) -> None:
        self._database = database
        self._after = after

    def go_to_end(self) -> None:
        """Read on from now."""
        self._after = self._database.read(feed.last_seq)

    def next_page(self) -> list[Change]:
        """Return the next changes; none when there are none yet.

        Raises:
            CommandRefused: the feed ends before the last change that was read, or lacks some.

        """
        page, last = self._database.read(lambda tx: (self._page(tx), feed.last_seq(tx)))
        if self._after is not None:
            self._refuse_gap(self._after, page[0].seq if page else last + 1, last)
        whole = next((at for at in range(1, len(page)) if page[at].seq != page[at - 1].seq + 1), len(page))
        if page:
            self._after = page[whole - 1].seq
        return page[:whole]

    def _page(self, tx: sa.Connection) -> list[Change]:
        return feed.page(tx, after=self._after or 0, entries=_ENTRIES)

    def _refuse_gap(self, after: int, following: int, last: int) -> None:
        if after > last:
            raise CommandRefused(
                f"the last change is {last}: there is no change {after}",
                f"give --since {last} or less; after a restore, what follows is a new history",
            )
        if following != after + 1:
            raise CommandRefused(
                f"the changes {after + 1} to {following - 1} are not kept",
                f"read what there is: --since {following - 1}",
            )
