"""Doing several things at the same moment."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.wire import Reply


def race(*acts: Callable[[], Reply]) -> list[Reply]:
    """Do all acts at once, each in a thread, and return their replies in order."""
    start = threading.Barrier(len(acts))

    def act(each: Callable[[], Reply]) -> Reply:
        start.wait(timeout=30)
        return each()

    with ThreadPoolExecutor(len(acts)) as pool:
        return [done.result(timeout=60) for done in [pool.submit(act, each) for each in acts]]
