"""What a certificate and its key must be."""

from pathlib import Path

import pytest

from lading.oci.errors import CertificateUnusable
from lading.web import tls
from tests.capability.certificates import Authority, replace


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with good and bad certificates and keys."""
    authority = Authority(tmp_path_factory.mktemp("tls") / "pki")
    certificate, key = authority.issue()
    authority.issue("other")
    authority.encrypt(key)
    (authority.folder / "damaged.pem").write_text(certificate.read_text().replace("M", "", 1))
    return authority.folder


@pytest.mark.parametrize(
    ("certificate", "key", "sentence"),
    [
        ("no.pem", "server.key", "the TLS certificate {pki}/no.pem cannot be read: no such file or directory"),
        ("server.pem", "no.key", "the TLS key {pki}/no.key cannot be read: no such file or directory"),
        ("server.pem", ".", "the TLS key {pki} cannot be read: is a directory"),
        ("server.key", "server.key", "the TLS certificate {pki}/server.key is not a PEM file with a certificate"),
        ("server.pem", "server.pem", "the TLS key {pki}/server.pem is not a PEM file with a key"),
        ("server.pem", "other.key", "the TLS key {pki}/other.key is not that of the certificate {pki}/server.pem"),
        ("server.pem", "server.encrypted", "the TLS key {pki}/server.encrypted is encrypted"),
        (
            "damaged.pem",
            "server.key",
            "the TLS certificate {pki}/damaged.pem with the key {pki}/server.key cannot be used: it is damaged",
        ),
    ],
)
def test_what_cannot_be_used_is_a_sentence(pki: Path, certificate: str, key: str, sentence: str) -> None:
    """With the name of the file; nobody is asked for a passphrase on a terminal."""
    with pytest.raises(CertificateUnusable) as caught:
        tls.load(pki / certificate, pki / key)

    assert caught.value.message == sentence.format(pki=pki)
    assert caught.value.hint


def test_certificate_and_key_may_be_one_file(pki: Path) -> None:
    """As some tools write them."""
    both = pki / "both.pem"
    both.write_text((pki / "server.key").read_text() + (pki / "server.pem").read_text())

    tls.load(both, both)


def test_files_are_new_only_when_they_have_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the renaming of the certificate and that of its key, the two do not belong together."""
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.0)
    authority = Authority(tmp_path / "pki")
    files, new = authority.issue(), authority.issue("renewed")
    certificate = tls.Certificate(*files)
    assert [certificate.has_changed() for _ in range(3)] == [False] * 3

    replace(files[:1], new[:1])
    looks = [certificate.has_changed()]
    replace(files[1:], new[1:])
    looks += [certificate.has_changed() for _ in range(2)]
    certificate.renew()
    looks += [certificate.has_changed() for _ in range(2)]

    assert looks == [False, False, True, False, False]
