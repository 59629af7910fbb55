"""Makes requests that are nearly right, of right ones and of the corpus."""

import random
from itertools import pairwise

from tests.capability.corpus import CASES, FOLLOWING

_TOKENS = (
    b"\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n",
    b"ffffffffffffffff\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0", b"HTTP/1.1",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n", b";a=b", b"%2F", b"..", b"\xff", b"\x7f", b"http://a", b"?", b"#",
)  # fmt: skip
_CHUNKED = b"PUT /v2/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_LARGE_BODY = _CHUNKED + b"".join(
    b"%x\r\n%s\r\n" % (size, b"x" * size) for size in (1, 30_000, 32_768, 32_768, 70_000, 17)
)
_GOOD = (
    FOLLOWING.replace(b"Connection: close\r\n", b""),
    b"PUT /v2/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    _CHUNKED + b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"GET /v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
_LARGE = (
    _LARGE_BODY + b"0\r\n\r\n",
    b"PUT /v2/b HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"y" * 200_000,
)
_LARGE_SHARE = 0.01
_SEEDS = tuple(case.sent for case in CASES if len(case.sent) < 1000) + 20 * _GOOD


def request(rng: random.Random) -> bytes:
    """Return the bytes of a connection: one to three requests, with none to a few mutations."""
    pool = _LARGE if rng.random() < _LARGE_SHARE else _SEEDS
    data = b"".join(rng.choice(pool) for _ in range(rng.randint(1, 3)))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
        data = _mutated(data, rng)
    return data + FOLLOWING


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """Return the bytes in a few pieces, now and then one by one."""
    if len(data) < 300 and rng.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 5)))})
    return [data[start:end] for start, end in pairwise(cuts)]


def _mutated(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((1, 1, 2, 5, 20)))
    match rng.randrange(5):
        case 0:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + data[at:end] * 2 + data[end:]
        case 3:
            return data[:at] + rng.choice(_TOKENS) + data[at:]
        case _:
            return data[:at] + rng.choice(_TOKENS) + data[end:]
