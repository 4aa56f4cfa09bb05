"""Lookup: a private key that is made once, in a file that only its user can read."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

DOCUMENTATION = """
name: cluster_private_key
short_description: A private key (EC P-256, PEM), made when its file is not there
options:
  _terms: {description: Paths of the files., required: true, type: list, elements: path}
"""


def read_or_make(path: pathlib.Path) -> str:
    """Return the key in a file, and make it first when there is none.

    Args:
        path: The file. It is written whole or not at all, and never over another one.

    Returns:
        The key as PEM.

    Raises:
        OSError: The file can neither be read nor written.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(part, path)
        finally:
            part.unlink()
    return path.read_text()


class LookupModule(LookupBase):
    """The lookup."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the keys in the files."""
        try:
            return [read_or_make(pathlib.Path(term)) for term in terms]
        except OSError as error:
            raise AnsibleLookupError(f"The private key cannot be read or made: {error}") from error
