"""regctl of regclient: copies digest for digest, between registries and OCI layouts."""

from tests.clients.client import Client, held_in_layout, printed_digest
from tests.clients.registry import Held


class Regctl(Client):
    name = "regctl"
    programs = ("regctl",)

    def version(self) -> str:
        return self.run("regctl", "version", "--format", "{{.VCSTag}}").strip() or "unknown"

    def login(self, host: str, user: str, password: str) -> None:
        self.run("regctl", "registry", "set", "--skip-check", "--tls", "disabled", host)
        self.run("regctl", "registry", "login", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("regctl", "registry", "logout", host)

    def push(self, reference: str) -> str:
        return self._copy(f"ocidir://{self.fixture.layout}:amd64", reference)

    def pull(self, reference: str, platform: str | None = None) -> Held:
        folder = self.empty_folder()
        chosen = ["--platform", platform] if platform else []
        self._regctl(reference, "image", "copy", *chosen, reference, f"ocidir://{folder}:pulled")
        return held_in_layout(folder)

    def push_index(self, reference: str) -> str:
        return self._copy(f"ocidir://{self.fixture.layout}:index", reference)

    def push_elsewhere(self, source: str, target: str) -> str:
        return self._copy(source, target)

    def delete(self, reference: str) -> None:
        self._regctl(reference, "manifest", "delete", reference)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "REGCTL_CONFIG": str(self.scratch / "regctl.json")}

    def _copy(self, source: str, target: str) -> str:
        self._regctl(target, "image", "copy", source, target)
        return printed_digest(self._regctl(target, "image", "digest", target))

    def _regctl(self, reference: str, *words: str) -> str:
        host = reference.partition("/")[0]
        return self.run("regctl", "--host", f"reg={host},tls=disabled", *words)
