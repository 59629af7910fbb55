"""A process that makes an object, for the tests: python -m tests.storage.making DATA UPLOAD.

The data directory is prepared. It writes `begin` and `returned` to standard output around the call, so that a trace
shows what lies between them.
"""

import asyncio
import os
import sys
from pathlib import Path

from lading.oci.digest import Algorithm
from lading.storage.disk import DiskStore

CONTENT = b"content of an object"


async def main(data: Path, upload_id: str) -> None:
    """Append, make the object, and print its key."""
    store = DiskStore(data)
    staging = store.stage(upload_id)
    assert staging is not None
    with staging:
        await staging.append([CONTENT], None)
        digest = (await staging.rehash(Algorithm.SHA256)).digest()
        os.write(1, b"begin\n")
        object_key = await staging.make_object(digest)
        os.write(1, b"returned\n")
        os.write(1, object_key.encode())
    store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
