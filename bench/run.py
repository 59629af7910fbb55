"""Measures Lading beside CNCF Distribution and nginx, paired in one run: only the ratios say something.

    python bench/run.py [--layer-mb 256] [--rounds 5] [--quick] [--json FILE]

Each row is measured in rounds, every server in each round, back and forth. CPU is that of the server's whole process
tree. The table that is printed is Markdown: medians, and the median of the rounds' ratios.
"""

import argparse
import contextlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import DISTRIBUTION, TICK_SECONDS, Peer, PeerFailedError, distribution, lading, nginx
from work import (
    CONFIG_TYPE,
    LAYER_TYPE,
    PULLERS,
    Descriptor,
    Done,
    Images,
    Layer,
    WorkFailedError,
    digest_of,
    manifest_of,
    pull,
    push,
    storm,
    storm_of_heads,
    warm_memory,
)

REPOSITORY = "bench/layer"
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
TOOLS = ("nginx", "wrk", "ab", "curl")

Work = Callable[[Peer], Done]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done for one measurement."""

    layer_mb: int
    rounds: int
    images: int
    tags: int
    storm_seconds: int


@dataclass(frozen=True, slots=True)
class Unit:
    """How a row is written: the rate as amount per second, the cost as CPU per amount, each times a factor."""

    rate: str
    cost: str
    rate_factor: float = 1.0
    cost_factor: float = 1.0


BYTES = Unit("MB/s", "s/GB", rate_factor=1000.0)
IMAGES = Unit("images/s", "ms", cost_factor=1e3)
REQUESTS = Unit("/s", "us", cost_factor=1e6)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, in its row's units."""

    rate: float
    cost: float


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: for each server its samples, one for each round."""

    name: str
    unit: Unit
    samples: Mapping[str, Sequence[Sample]]

    def rate(self, peer: str) -> float:
        """Return the median rate."""
        return statistics.median(sample.rate for sample in self.samples[peer])

    def cost(self, peer: str) -> float:
        """Return the median CPU."""
        return statistics.median(sample.cost for sample in self.samples[peer])

    def rate_ratio(self, peer: str, other: str) -> float:
        """Return the median of the rounds' ratios: above 1 is faster than `other`."""
        return statistics.median(a.rate / b.rate for a, b in self._pairs(peer, other))

    def cost_ratio(self, peer: str, other: str) -> float:
        """Return the median of the rounds' ratios: below 1 is cheaper than `other`."""
        return statistics.median(a.cost / b.cost for a, b in self._pairs(peer, other))

    def _pairs(self, peer: str, other: str) -> list[tuple[Sample, Sample]]:
        return list(zip(self.samples[peer], self.samples[other], strict=True))


class Bench:
    """One run: the servers, the layer, and the rows so far."""

    def __init__(self, registries: Sequence[Peer], sizes: Sizes, folder: Path) -> None:
        self.rows: list[Row] = []
        self._registries = registries
        self._sizes = sizes
        self._folder = folder
        self._layer = Layer.random(sizes.layer_mb << 20)

    def run(self) -> None:
        """Measure every row."""
        self._pushes()
        with nginx(self._folder / "nginx", {self._blob_path: self._layer_file()}) as ceiling:
            self._pulls([*self._registries, ceiling])
        self._small_pushes()
        self._reads()

    @property
    def _blob_path(self) -> str:
        return f"/v2/{REPOSITORY}/blobs/{self._layer.digest}"

    def _layer_file(self) -> Path:
        file = self._folder / "layer"
        file.write_bytes(self._layer.content)
        return file

    def _pushes(self) -> None:
        for name, framed in (("push, 32 KiB chunked frames", True), ("push, with a length", False)):

            def work(peer: Peer, *, framed: bool = framed) -> Done:
                return push(peer, REPOSITORY, self._layer, framed=framed)

            def before_each() -> None:
                warm_memory(self._folder)

            self._measure(name, BYTES, work, before_round=self._layer.renew, before_each=before_each)

    def _pulls(self, peers: Sequence[Peer]) -> None:
        for name, clients, times in (("pull", 1, PULLERS), (f"pull, {PULLERS} at the same time", PULLERS, 1)):

            def work(peer: Peer, *, clients: int = clients, times: int = times) -> Done:
                return pull(peer, self._blob_path, self._layer, clients=clients, times=times)

            self._measure(name, BYTES, work, peers=peers)

    def _small_pushes(self) -> None:
        pushers = {peer.name: Images(peer, "small") for peer in self._registries}
        taggers = {peer.name: Images(peer, REPOSITORY) for peer in self._registries}
        config = Descriptor(CONFIG_TYPE, digest_of(CONFIG), len(CONFIG))
        layer = Descriptor(LAYER_TYPE, self._layer.digest, len(self._layer.content))
        for peer in self._registries:
            push(peer, REPOSITORY, Layer(bytearray(CONFIG), digest_of(CONFIG)), framed=False)
        self._measure("small image push", IMAGES, lambda peer: pushers[peer.name].push(self._sizes.images))
        self._measure(
            "tag PUT",
            REQUESTS,
            lambda peer: taggers[peer.name].tag(self._sizes.tags, REPOSITORY, [config, layer]),
        )

    def _reads(self) -> None:
        config = Descriptor(CONFIG_TYPE, digest_of(CONFIG), len(CONFIG))
        layer = Descriptor(LAYER_TYPE, self._layer.digest, len(self._layer.content))
        digest = digest_of(manifest_of(config, [layer], "t0"))
        base = f"/v2/{REPOSITORY}"
        for name, path, do in (
            ("manifest GET by tag", f"{base}/manifests/t0000000", storm),
            ("manifest GET by digest", f"{base}/manifests/{digest}", storm),
            ("manifest HEAD by tag", f"{base}/manifests/t0000000", storm_of_heads),
            ("blob HEAD", self._blob_path, storm_of_heads),
            ("tags, page of 100", f"{base}/tags/list?n=100", storm),
            ("catalog, page of 100", "/v2/_catalog?n=100", storm),
        ):

            def work(peer: Peer, *, path: str = path, do: Callable[..., Done] = do) -> Done:
                return do(peer, path, seconds=self._sizes.storm_seconds)

            self._measure(name, REQUESTS, work)

    def _measure(
        self,
        name: str,
        unit: Unit,
        work: Work,
        *,
        peers: Sequence[Peer] | None = None,
        before_round: Callable[[], None] = lambda: None,
        before_each: Callable[[], None] = lambda: None,
    ) -> None:
        """Measure a row; a first round, in which caches fill, is not counted."""
        peers = self._registries if peers is None else peers
        samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
        for number in range(self._sizes.rounds + 1):
            before_round()
            for peer in peers if number % 2 else reversed(peers):
                before_each()
                cpu = peer.cpu_seconds()
                done = work(peer)
                cpu = max(peer.cpu_seconds() - cpu, TICK_SECONDS)  # what is less than a tick may read as nothing
                if number:
                    rate, cost = done.amount / done.seconds * unit.rate_factor, cpu / done.amount * unit.cost_factor
                    samples[peer.name].append(Sample(rate, cost))
        self.rows.append(Row(name, unit, samples))
        print(f"measured: {name}", file=sys.stderr)


def table(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """Return the rows as Markdown; the first peer is compared with each of the others."""
    ours, *others = peers
    titles = ["", *peers, *(f"rate, CPU to {other}" for other in others)]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        there = [other for other in others if other in row.samples]
        values = [_value(row, peer) if peer in row.samples else "" for peer in peers]
        ratios = [
            f"{row.rate_ratio(ours, other):.2f}x, {row.cost_ratio(ours, other):.2f}x" if other in there else ""
            for other in others
        ]
        lines.append([row.name, *values, *ratios])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(row: Row, peer: str) -> str:
    return f"{_short(row.rate(peer))} {row.unit.rate}, {_short(row.cost(peer))} {row.unit.cost}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def document(rows: Sequence[Row], sizes: Sizes) -> str:
    """Return all samples as JSON."""
    return json.dumps(
        {
            "layer_mb": sizes.layer_mb,
            "rounds": sizes.rounds,
            "rows": [
                {
                    "name": row.name,
                    "rate_unit": row.unit.rate,
                    "cost_unit": row.unit.cost,
                    "samples": {
                        peer: [{"rate": sample.rate, "cost": sample.cost} for sample in samples]
                        for peer, samples in row.samples.items()
                    },
                }
                for row in rows
            ],
        },
        indent=1,
    )


def _sizes(arguments: argparse.Namespace) -> Sizes:
    if arguments.quick:
        return Sizes(arguments.layer_mb or 64, arguments.rounds or 2, images=50, tags=100, storm_seconds=1)
    return Sizes(arguments.layer_mb or 256, arguments.rounds or 5, images=200, tags=500, storm_seconds=3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Lading beside Distribution and nginx.")
    parser.add_argument("--layer-mb", type=int, help="size of the big layer in MiB (256)")
    parser.add_argument("--rounds", type=int, help="counted rounds of each row (5)")
    parser.add_argument("--quick", action="store_true", help="a small run of about a minute, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    return parser.parse_args()


def main() -> int:
    """Run, print the table, and leave nothing behind."""
    arguments = _arguments()
    sizes = _sizes(arguments)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None] + [DISTRIBUTION.name] * (not DISTRIBUTION.exists())
    if missing:
        print(f"bench: {', '.join(missing)} not found; run tests/clients/install bench", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lading-bench-")))
        try:
            registries = [
                stack.enter_context(lading(folder / "lading")),
                stack.enter_context(distribution(folder / "distribution")),
            ]
            bench = Bench(registries, sizes, folder)
            bench.run()
        except (PeerFailedError, WorkFailedError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    print(table(bench.rows, ["Lading", "Distribution", "nginx"]))
    if arguments.json:
        arguments.json.write_text(document(bench.rows, sizes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
