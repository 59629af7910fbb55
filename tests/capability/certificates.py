"""Certificates for the tests, made by the openssl program: an authority, and what it signs."""

import os
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
# Python 3.13 refuses a certificate without these.
IDENTIFIERS = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost\n"


class Authority:
    """An authority of its own in `folder`, which clients trust by `ca`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._ca_key = folder / "ca.key"
        files = ("-keyout", self._ca_key, "-out", self.ca)
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        self._openssl("req", "-x509", *CURVE, *files, *usage, "-subj", "/CN=tests", "-days", "9")

    def issue(self, name: str = "server", *, days: int = 9, extensions: str = NAMES) -> tuple[Path, Path]:
        """Return the files of a new certificate for this machine, and of its key; -1 days is one that has expired."""
        certificate, key, request = (self.folder / f"{name}.{kind}" for kind in ("pem", "key", "csr"))
        self._openssl("req", "-new", *CURVE, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extension_file = self.folder / "extensions"
        extension_file.write_text(f"{IDENTIFIERS}{extensions}")
        signing = ("-CA", self.ca, "-CAkey", self._ca_key, "-CAcreateserial", "-extfile", extension_file)
        self._openssl("x509", "-req", "-in", request, "-out", certificate, "-days", str(days), *signing)
        return certificate, key

    def encrypt(self, key: Path) -> Path:
        """Return a copy of a key that wants a passphrase."""
        encrypted = key.with_suffix(".encrypted")
        self._openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", encrypted)
        return encrypted

    def client(self) -> ssl.SSLContext:
        """Return what a client uses that trusts this authority and nothing else."""
        return ssl.create_default_context(cafile=self.ca)

    def _openssl(self, *arguments: str | Path) -> None:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"openssl {' '.join(map(str, arguments))}\n{done.stderr}"


def presented(certificate: Path) -> bytes:
    """Return a certificate file's first certificate, DER, as a client is shown it."""
    text = certificate.read_text()
    return ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])


def replace(place: Sequence[Path], new: Sequence[Path]) -> None:
    """Put a new certificate and key in the place of others, as ACME clients do: by rename, one after the other."""
    for target, source in zip(place, new, strict=True):
        copy = target.with_suffix(".new")
        copy.write_bytes(source.read_bytes())
        os.replace(copy, target)  # noqa: PTH105 - the point is the one system call
