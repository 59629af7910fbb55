"""skopeo of Debian 12: copies between a registry and places on disk, without a daemon or a store of its own."""

from tests.clients.client import Client, held_in_layout
from tests.clients.registry import Held


class Skopeo(Client):
    name = "skopeo"
    programs = ("skopeo",)

    def version(self) -> str:
        return self.run("skopeo", "--version").split()[-1]

    def login(self, host: str, user: str, password: str) -> None:
        self.run("skopeo", "login", "--tls-verify=false", "-u", user, "-p", password, host)

    def logout(self, host: str) -> None:
        self.run("skopeo", "logout", host)

    def push(self, reference: str) -> str:
        return self._copy(f"oci:{self.fixture.layout}:amd64", f"docker://{reference}", "--dest-tls-verify=false")

    def pull(self, reference: str, platform: str | None = None) -> Held:
        folder = self.empty_folder()
        chosen = _override(platform) if platform else []
        self._copy(f"docker://{reference}", f"oci:{folder}:pulled", "--src-tls-verify=false", *chosen)
        return held_in_layout(folder)

    def push_index(self, reference: str) -> str:
        return self._copy(
            f"oci:{self.fixture.layout}:index", f"docker://{reference}", "--all", "--dest-tls-verify=false"
        )

    def push_elsewhere(self, source: str, target: str) -> str:
        return self._copy(
            f"docker://{source}", f"docker://{target}", "--src-tls-verify=false", "--dest-tls-verify=false"
        )

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "XDG_RUNTIME_DIR": str(self.scratch)}

    def delete(self, reference: str) -> None:
        self.run("skopeo", "delete", "--tls-verify=false", f"docker://{reference}")

    def _copy(self, source: str, target: str, *options: str) -> str:
        # Without a policy skopeo refuses to copy anything; Debian's package brings one, a bare machine may not.
        digest_file = self.scratch / "digest"
        self.run("skopeo", "--insecure-policy", "copy", "-q", f"--digestfile={digest_file}", *options, source, target)
        return digest_file.read_text().strip()


def _override(platform: str) -> list[str]:
    system, architecture, *variant = platform.split("/")
    return [
        f"--override-os={system}",
        f"--override-arch={architecture}",
        *(f"--override-variant={each}" for each in variant),
    ]
