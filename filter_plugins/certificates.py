"""What is wrong with a certificate, and what it is called: filters of the ``certificates`` role."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization


def problems(certificate: str, key: str, ca: str, names: Sequence[str], days: int = 0) -> list[str]:
    """Say what is wrong with a host's certificate.

    Args:
        certificate: The certificate, PEM, followed by those between it and the CA, if any.
        key: Its private key, PEM, without a passphrase.
        ca: The certificates that may have signed it, PEM.
        names: Host names and addresses that it must be good for.
        days: For how many more days it must be good.

    Returns:
        A sentence for each problem; nothing when it can be used.
    """
    try:
        leaf, *between = x509.load_pem_x509_certificates(certificate.encode())
    except ValueError:
        return ["it is no certificate in PEM format"]
    try:
        roots = x509.load_pem_x509_certificates(ca.encode())
    except ValueError:
        return ["its CA is no certificate in PEM format"]
    now = datetime.datetime.now(datetime.UTC)
    found = _key_problems(leaf, key)
    if leaf.not_valid_before_utc > now:
        found.append(f"it is valid from {leaf.not_valid_before_utc:%Y-%m-%d} only")
    if leaf.not_valid_after_utc <= now:
        found.append(f"it has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    elif leaf.not_valid_after_utc <= now + datetime.timedelta(days=days):
        found.append(f"it expires on {leaf.not_valid_after_utc:%Y-%m-%d}")
    own = _names(leaf)
    if missing := [name for name in names if not _covered(name, own)]:
        found.append(f"it is not for {', '.join(missing)}, but for {', '.join(own) or 'nothing'}")
    chain = [leaf, *between]
    linked = all(_signed(one, by) for one, by in zip(chain, between, strict=False))
    if not linked or not any(_signed(chain[-1], root) for root in roots):
        found.append("it is not signed by the CA")
    elif any(root.not_valid_after_utc <= now for root in roots if _signed(chain[-1], root)):
        found.append("the CA that signed it has expired")
    return found


def key_id(key: str) -> str:
    """Name a private key by what is public of it.

    Args:
        key: The key, PEM.

    Returns:
        Twelve hexadecimal digits.
    """
    public = serialization.load_pem_private_key(key.encode(), password=None).public_key()
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public.public_bytes(*form)).hexdigest()[:12]


def due_cas(pairs: Iterable[tuple[str, str]], days: int) -> list[int]:
    """Say which CAs must be made anew.

    Args:
        pairs: Private key and certificate of each, PEM; '' for a certificate that is not there.
        days: For how many more days each must be good.

    Returns:
        Their places in the list.
    """
    return [place for place, (key, own) in enumerate(pairs) if problems(own, key, own, [], days)]


def text(path: str) -> str:
    """Return the text of a file on the control node; '' when it is not there."""
    file = pathlib.Path(path)
    return file.read_text() if file.exists() else ""


def alt_name(name: str) -> str:
    """Write a name as a certificate request does.

    Args:
        name: A host name or an address.

    Returns:
        ``DNS:`` or ``IP:`` and the name.
    """
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


def _key_problems(leaf: x509.Certificate, key: str) -> list[str]:
    try:
        own = serialization.load_pem_private_key(key.encode(), password=None).public_key()
    except TypeError:
        return ["its key has a passphrase, which the services cannot enter"]
    except ValueError:
        return ["its key is no private key in PEM format"]
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if own.public_bytes(*form) != leaf.public_key().public_bytes(*form):
        return ["its key belongs to another certificate"]
    return []


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.DNSName) + addresses


def _covered(name: str, own: Sequence[str]) -> bool:
    try:
        return str(ipaddress.ip_address(name)) in own
    except ValueError:
        patterns = {name.lower(), f"*.{name.lower().partition('.')[2]}"}
        return any(one.lower() in patterns for one in own)


def _signed(one: x509.Certificate, by: x509.Certificate) -> bool:
    if one == by:
        return True
    try:
        one.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class FilterModule:
    """The functions above as Ansible filters, under the prefix ``certificate_``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        exported = (problems, key_id, due_cas, text, alt_name)
        return {f"certificate_{function.__name__}": function for function in exported}
