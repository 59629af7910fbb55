"""helm 4: charts as OCI artifacts. The chart's name is the last part of the repository, its version is the tag."""

import shutil
from pathlib import Path

from tests.clients.client import Client, printed_digest, summed_file, without_tag
from tests.clients.registry import Held, MismatchError

CHART, VERSION = "fixture", "1.0.0"


class Helm(Client):
    name = "helm"
    programs = ("helm",)

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._package = scratch / f"{CHART}-{VERSION}.tgz"

    def prepare(self, *, lean: bool = False) -> None:  # noqa: ARG002 - a chart is small
        self.run("helm", "create", CHART)
        self.run("helm", "package", CHART, "--version", VERSION)

    @property
    def contents(self) -> tuple[str, ...]:
        return (summed_file(self._package).content_digest,)

    def version(self) -> str:
        return self.run("helm", "version", "--template", "{{.Version}}").strip()

    def login(self, host: str, user: str, password: str) -> None:
        self.run("helm", "registry", "login", "--plain-http", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("helm", "registry", "logout", host)

    def push(self, reference: str) -> str:
        return self._push(self._package, reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        assert platform is None, "a chart has no platforms"
        digest, package = self._pull(reference)
        summed = summed_file(package)
        if summed != summed_file(self._package):
            raise MismatchError("the pulled chart is not the packaged file")
        return Held(digest, (summed.content_digest,))

    def push_elsewhere(self, source: str, target: str) -> str:
        _, package = self._pull(source)
        # The manifest carries the time of the file: only with the same time is it the same manifest.
        shutil.copystat(self._package, package)
        return self._push(package, target)

    def environment(self) -> dict[str, str]:
        folders = {f"HELM_{kind}_HOME": str(self.scratch / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return {**super().environment(), **folders}

    def _push(self, package: Path, reference: str) -> str:
        parent = without_tag(reference).removesuffix(f"/{CHART}")
        return printed_digest(self.run("helm", "push", "--plain-http", package, f"oci://{parent}"))

    def _pull(self, reference: str) -> tuple[str, Path]:
        folder = self.empty_folder()
        where = [reference] if "@" in reference else [without_tag(reference), "--version", VERSION]
        printed = self.run("helm", "pull", "--plain-http", f"oci://{where[0]}", *where[1:], "-d", folder)
        (package,) = folder.iterdir()
        return printed_digest(printed), package
