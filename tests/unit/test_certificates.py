"""What is said of certificates, with real ones."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib
from collections.abc import Sequence

import certificates
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey


def pem(key: Key, passphrase: bytes = b"") -> str:
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden).decode()


def issued(
    subject: str, key: Key, by: tuple[str, Key], names: Sequence[str] = (), *, since: int = -1, days: int = 100
) -> str:
    """A certificate, as PEM; `since` and `days` count from today."""
    today = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by[0])]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today + datetime.timedelta(days=since))
        .not_valid_after(today + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(by[1], hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


CA_KEY, HOST_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
SIGNER = ("site CA", CA_KEY)
CA = issued("site CA", CA_KEY, SIGNER)
OTHER_CA = issued("site CA", OTHER_KEY, ("site CA", OTHER_KEY))
NAMES = ["192.0.2.7", "vm7.example.org"]
GOOD = issued("vm7", HOST_KEY, SIGNER, NAMES)


def test_a_good_certificate_has_no_problem() -> None:
    assert certificates.problems(GOOD, pem(HOST_KEY), CA, NAMES, 60) == []


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "names", "said"),
    [
        ("", pem(HOST_KEY), CA, NAMES, "it is no certificate in PEM format"),
        ("nonsense", pem(HOST_KEY), CA, NAMES, "it is no certificate in PEM format"),
        (GOOD, pem(HOST_KEY), "", NAMES, "its CA is no certificate in PEM format"),
        (GOOD, "", CA, NAMES, "its key is no private key in PEM format"),
        (GOOD, pem(OTHER_KEY), CA, NAMES, "its key belongs to another certificate"),
        (GOOD, pem(HOST_KEY, b"hidden"), CA, NAMES, "its key has a passphrase, which the services cannot enter"),
        (
            GOOD,
            pem(HOST_KEY),
            issued("site CA", OTHER_KEY, ("site CA", OTHER_KEY)),
            NAMES,
            "it is not signed by the CA",
        ),
        (
            GOOD,
            pem(HOST_KEY),
            CA,
            ["192.0.2.8", "vm7.example.org"],
            "it is not for 192.0.2.8, but for vm7.example.org, 192.0.2.7",
        ),
        (GOOD, pem(HOST_KEY), issued("site CA", CA_KEY, SIGNER, days=0), NAMES, "the CA that signed it has expired"),
    ],
)
def test_each_problem_is_named(certificate: str, key: str, ca: str, names: list[str], said: str) -> None:
    assert certificates.problems(certificate, key, ca, names) == [said]


@pytest.mark.parametrize(
    ("since", "days", "said"),
    [(-9, -2, "it has expired on "), (5, 9, "it is valid from "), (-9, 30, "it expires on ")],
)
def test_its_time_counts(since: int, days: int, said: str) -> None:
    dated = issued("vm7", HOST_KEY, SIGNER, NAMES, since=since, days=days)
    (problem,) = certificates.problems(dated, pem(HOST_KEY), CA, NAMES, 60 if since < 0 < days else 0)
    assert problem.startswith(said)


def test_the_chain_may_be_longer() -> None:
    between = issued("intermediate", OTHER_KEY, SIGNER)
    leaf = issued("vm7", HOST_KEY, ("intermediate", OTHER_KEY), NAMES)
    assert certificates.problems(leaf + between, pem(HOST_KEY), CA, NAMES) == []
    assert certificates.problems(leaf, pem(HOST_KEY), CA, NAMES) == ["it is not signed by the CA"]


def test_a_wildcard_covers_one_level() -> None:
    wild = issued("site", HOST_KEY, SIGNER, ["*.example.org"])
    assert certificates.problems(wild, pem(HOST_KEY), CA, ["vm7.example.org"]) == []
    assert certificates.problems(wild, pem(HOST_KEY), CA, ["a.vm7.example.org"]) != []


def test_names_are_written_as_a_request_does() -> None:
    assert [certificates.alt_name(name) for name in ["vm7", "192.0.2.7", "2001:db8::7"]] == [
        "DNS:vm7",
        "IP:192.0.2.7",
        "IP:2001:db8::7",
    ]


def test_cas_that_are_missing_or_end_are_due(tmp_path: pathlib.Path) -> None:
    assert certificates.due_cas([(pem(CA_KEY), CA), (pem(OTHER_KEY), ""), (pem(OTHER_KEY), OTHER_CA)], 60) == [1]
    assert certificates.due_cas([(pem(CA_KEY), CA)], 200) == [0]
    assert certificates.due_cas([(pem(OTHER_KEY), CA)], 60) == [0], "another key's"


def test_a_key_is_named_by_what_is_public() -> None:
    assert certificates.key_id(pem(CA_KEY)) == certificates.key_id(pem(CA_KEY)) != certificates.key_id(pem(OTHER_KEY))


def test_a_file_that_is_not_there_is_empty(tmp_path: pathlib.Path) -> None:
    (tmp_path / "there").write_text("PEM\n")
    assert [certificates.text(str(tmp_path / name)) for name in ("there", "not there")] == ["PEM\n", ""]
