"""Ansible lookup: a secret of the cluster, given by the user or generated on the control node."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import string
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ansible.errors import AnsibleError
from ansible.parsing.vault import is_encrypted
from ansible.plugins.lookup import LookupBase
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

DOCUMENTATION = r"""
name: cluster_secret
short_description: A secret of the cluster
description:
  - The value that the variable O(ignore:secrets) gives wins. Otherwise it is the content of a file in
    O(ignore:secrets_directory), which is made on first need, for the user of the control node alone, and encrypted
    when the run has an Ansible vault password. A file that is there is never written over.
  - What the secrets are, and which form each has, is said by the variable O(ignore:secrets_catalogue).
  - While playbooks/rotate_secrets.yml is under way, a secret has two values, NAME and NAME.new; the file
    C(rotation) says which of them is to be used.
  - A check (C(--check)) writes nothing, and uses a value in the place of one that is yet to be made.
options:
  _terms: {description: Names in the catalogue., required: true}
  part:
    type: str
    default: value
    choices: [value, values, login, former_login, jwks, problems, notices, missing, stage, announced]
    description:
      - V(value) is the secret, and V(values) the list of it and of what else is valid; V(login) the name to log in
        with, and V(former_login) the one that it takes turns with. V(jwks) is the set of public keys that belong to a
        private key.
      - These take no name. V(problems) are sentences on what is wrong with the values that the user gives and with
        the files; V(notices) on what is left to do. V(missing) are names of secrets that are neither given nor
        generated yet. V(stage) is that of a rotation that is under way, or empty, and V(announced)
        whether it has keys whose readers must know them first.
"""
EXAMPLES = """
- ansible.builtin.set_fact:
    database_password: "{{ lookup('cluster_secret', 'database_password') }}"
"""
RETURN = """
_raw: {description: One entry for each name., type: list, elements: str}
"""

#: Kind of a secret to how many characters are generated.
LENGTHS = {"password": 32, "key": 64, "fernet": 32}
#: Kinds that are private keys: class and name. No browser takes a certificate with a key of Ed25519.
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
KEYS: dict[str, tuple[type[PrivateKey], str]] = {
    "ed25519": (ed25519.Ed25519PrivateKey, "Ed25519"),
    "p256": (ec.EllipticCurvePrivateKey, "P-256"),
}
CHARACTERS = string.ascii_letters + string.digits
MARKER = "rotation"
#: Stages of a rotation. New values are known where tokens and ciphertexts are read; then they are used; then the
#: former ones are no longer known.
ANNOUNCE, SWITCH, FINISH = STAGES = ("announce", "switch", "finish")
LOGIN = "login="
#: Kinds whose values are read by others than those who write with them.
ANNOUNCED = ("fernet", "ed25519", "p256")

#: How the value begins that stands for one which is yet to be made; see the filter cluster_secret_problems.
STAND_IN = "NotGenerated"

SHORTEST = 12
FEWEST_CHARACTERS = 6
#: Letters of passwords that everybody tries, those of our reference documents among them.
WELL_KNOWN = """
airflow airflowpass airflowuser airflowadmin airflowpassword admin administrator adminadmin adminpass
adminpassword changeme changeit changemenow changethis default defaultpassword guest guestguest iloveyou letmein
mypassword passw pass password passwordpassword passphrase postgres postgresql postgrespassword qwerty qwertyuiop
rabbit rabbitmq rabbitmqpassword root rootpassword rootroot secret secretkey secretpassword supersecret test
testpassword testtest user userpassword welcome yoursecretkey
"""


class Store:
    """The files of a directory of secrets."""

    #: Of all stores of a process: path to its signature and text. Decrypting costs some ten milliseconds a time.
    _texts: ClassVar[dict[str, tuple[tuple[int, ...], str]]] = {}

    def __init__(self, directory: str, vault: Any, dry: bool = False) -> None:
        """Touch nothing yet.

        Args:
            directory: The directory; made on first need.
            vault: Ansible's vault, with the passwords of this run.
            dry: Write nothing, and return a stand-in for what would be generated.
        """
        self.directory = pathlib.Path(directory)
        self._vault = vault
        self._dry = dry

    def rotation(self) -> dict[str, Any]:
        """Return the rotation that is under way: ``stage`` and ``names``; nothing when there is none.

        Raises:
            AnsibleError: The file that says so is damaged.
        """
        path = self.directory / MARKER
        try:
            found = json.loads(path.read_text())
            if found["stage"] in STAGES and isinstance(found["names"], list):
                return dict(found)
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            pass
        raise AnsibleError(
            f"{path} is damaged. Write it anew: {json.dumps({'stage': SWITCH, 'names': []})} with the names of the"
            " files in that directory that end with .new (without it), then run playbooks/rotate_secrets.yml."
        )

    def entries(self, name: str, kind: str) -> list[tuple[str, str]]:
        """Read a secret, and make it when it is not there.

        Args:
            name: The secret's name.
            kind: One of LENGTHS or KEYS.

        Returns:
            Value and login ('' for the usual one), of the value to be used and then of another that is valid.

        Raises:
            AnsibleError: A file is damaged, cannot be decrypted or cannot be written.
        """
        present = self._entry(name, kind)
        if present is None:
            present = (self._stand_in(name, kind), "") if self._dry else self._make(name, kind, "")
        rotation = self.rotation()
        new = self._entry(f"{name}.new", kind) if rotation else None
        if new is None:
            return [present]
        return {ANNOUNCE: [present, new], SWITCH: [new, present], FINISH: [new]}[rotation["stage"]]

    def begin(self, name: str, kind: str, login: str) -> None:
        """Make the value that takes a secret's place; the one that is there already stays.

        Args:
            name: The secret's name.
            kind: One of LENGTHS or KEYS.
            login: The name to log in with that goes with it; '' for the usual one.
        """
        if self._entry(f"{name}.new", kind) is None:
            self._make(f"{name}.new", kind, login)

    def put(self, name: str) -> bool:
        """Give a new value its final name, and say whether there was one."""
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.directory / f"{name}.new", self.directory / name)
            return True
        return False

    def mark(self, rotation: Mapping[str, Any] | None) -> None:
        """Record the rotation that is under way; None for the end of it."""
        path = self.directory / MARKER
        if rotation is None:
            path.unlink(missing_ok=True)
            return
        self._make_directory()
        temporary = self._temporary(json.dumps(rotation) + "\n")
        os.replace(temporary, path)

    def has(self, name: str) -> bool:
        """Say whether a secret has been generated."""
        return (self.directory / name).exists()

    def plain_files(self, names: Sequence[str]) -> list[str]:
        """Name the files that are not encrypted, where the run has a vault password."""
        paths = [self.directory / (name + end) for name in names for end in ("", ".new")]
        if not self._vault.secrets:
            return []
        return [str(path) for path in paths if path.is_file() and not is_encrypted(path.read_bytes())]

    def open_paths(self) -> list[str]:
        """Name the directory and those files in it that others than their owner may read or write."""
        if not self.directory.is_dir():
            return []
        paths = [self.directory, *sorted(path for path in self.directory.iterdir() if path.is_file())]
        return [str(path) for path in paths if path.stat().st_mode & 0o077]

    def _entry(self, name: str, kind: str) -> tuple[str, str] | None:
        path = self.directory / name
        try:
            found = path.stat()
            signature = (found.st_mtime_ns, found.st_ino, found.st_size)
            cached = self._texts.get(str(path))
            text = cached[1] if cached and cached[0] == signature else self._decrypted(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AnsibleError(
                f"{path} cannot be read: {error.strerror}. It must belong to the user that runs Ansible."
            ) from None
        self._texts[str(path)] = (signature, text)
        value, _, login = text.partition(f"\n{LOGIN}")
        if wanted := kind_problem(value, kind):
            raise AnsibleError(
                f"{path} is {'empty' if not value else 'damaged'}: it should hold {wanted}. Put it back"
                " from a copy. Without one, remove it, and have the next run generate another by -e"
                " preflight_accept_secrets=true: tasks that run meanwhile can fail."
            )
        return value, login

    def _decrypted(self, path: pathlib.Path) -> str:
        data = path.read_bytes()
        if is_encrypted(data):
            if not self._vault.secrets:
                raise AnsibleError(
                    f"{path} is encrypted with Ansible vault, and this run has no vault password. Add"
                    " --vault-password-file FILE or --ask-vault-pass, or set vault_password_file in ansible.cfg."
                )
            try:
                data = self._vault.decrypt(data)
            except AnsibleError:
                raise AnsibleError(
                    f"{path} is encrypted with another vault password than this run has, or is damaged."
                    " Give the password that it was encrypted with, or put the file back from a copy."
                ) from None
        try:
            return data.decode().strip()
        except UnicodeDecodeError:
            return "\0"  # which no kind allows

    def _make(self, name: str, kind: str, login: str) -> tuple[str, str]:
        value = generated(kind)
        text = f"{value}\n" + (f"{LOGIN}{login}\n" if login else "")
        path = self.directory / name
        try:
            self._make_directory()
            temporary = self._temporary(text if not self._vault.secrets else self._vault.encrypt(text).decode())
            try:
                os.link(temporary, path)  # whole or not at all, and only one of two that do so at once
            finally:
                os.unlink(temporary)
        except FileExistsError:
            pass
        except OSError as error:
            raise AnsibleError(
                f"{path} cannot be made: {error.strerror}. The user that runs Ansible must be able to write there, on a"
                " file system with hard links; or set secrets_directory to another place."
            ) from None
        there = self._entry(name, kind)
        if there is None:
            raise AnsibleError(f"{path} went away as it was made. Does somebody else remove it?")
        return there

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _temporary(self, text: str) -> str:
        descriptor, path = tempfile.mkstemp(dir=self.directory, prefix=".")  # 0600
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        return path

    def _stand_in(self, name: str, kind: str) -> str:
        # The same in each process of a run, and good for nothing.
        digest = hashlib.sha256(f"not generated: {self.directory}/{name}".encode()).digest()
        if kind == "ed25519":
            return pem(ed25519.Ed25519PrivateKey.from_private_bytes(digest))
        if kind == "p256":
            return pem(ec.derive_private_key(int.from_bytes(digest[1:]), ec.SECP256R1()))
        return (STAND_IN + digest.hex() * 2)[: LENGTHS[kind]]


def generated(kind: str) -> str:
    """Generate a secret.

    Args:
        kind: One of LENGTHS or KEYS.

    Returns:
        Random letters and digits, or a private key as PEM.
    """
    if kind == "ed25519":
        return pem(ed25519.Ed25519PrivateKey.generate())
    if kind == "p256":
        return pem(ec.generate_private_key(ec.SECP256R1()))
    return "".join(secrets.choice(CHARACTERS) for _ in range(LENGTHS[kind]))


def pem(key: PrivateKey) -> str:
    """Write a private key as PEM, without a newline at the end."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode().strip()


def kind_problem(value: str, kind: str) -> str:
    """Say what a file's text should be, when it is something else.

    Args:
        value: The text.
        kind: One of LENGTHS or KEYS.

    Returns:
        What it should be; '' when it is.
    """
    if kind in KEYS:
        return "" if _private_key(value, kind) else f"a private key (PEM, {KEYS[kind][1]})"
    if kind == "fernet":
        return "" if len(value) == LENGTHS[kind] and value.isascii() and value.isprintable() else "32 characters"
    return "" if len(value) >= 8 and value.isprintable() else "one line of at least 8 characters"


def _private_key(text: str, kind: str) -> Any:
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError):
        return None
    return key if isinstance(key, KEYS[kind][0]) else None


def jwks(pems: Sequence[str]) -> str:
    """Write the public keys of private ones, for Airflow's ``[api_auth] trusted_jwks_url``.

    Args:
        pems: Private Ed25519 keys as PEM.

    Returns:
        A JSON Web Key Set. The id of a key is its thumbprint, as Airflow makes it for a key that it signs with.

    Raises:
        AnsibleError: One of them is something else.
    """
    keys = []
    for text in pems:
        key = _private_key(text, "ed25519")
        if key is None:
            raise AnsibleError("a key that signs task tokens is no Ed25519 private key in PEM")
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        public = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
        digest = hashlib.sha256(json.dumps(public, separators=(",", ":"), sort_keys=True).encode()).digest()
        keys.append({**public, "kid": _base64url(digest)})
    return json.dumps({"keys": keys}, sort_keys=True)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def given_problems(given: Any, catalogue: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say what is wrong with the secrets that a user has set.

    Args:
        given: The variable `secrets`.
        catalogue: The variable `secrets_catalogue`.

    Returns:
        One sentence a problem, each with what to do instead, and without a secret.
    """
    if not isinstance(given, Mapping):
        return ["secrets: write a dictionary, NAME: VALUE for each secret that you set yourself."]
    logins = {login_name(name): entry for name, entry in catalogue.items() if entry.get("login")}
    problems = []
    for name, value in sorted(given.items()):
        if name in logins:
            usual = str(logins[name]["login"])
            other = other_login(logins[name], usual)
            if value not in (usual, other):
                problems.append(f"secrets.{name}: write {usual} or {other}.")
        elif name not in catalogue:
            known = ", ".join(sorted([*catalogue, *logins]))
            problems.append(f"secrets.{name}: there is no such secret, and the value is not used. There are: {known}.")
        elif problem := _given_problem(value, str(catalogue[name].get("kind", "password"))):
            problems.append(
                f"secrets.{name} {problem}. Remove it from the inventory to have one generated, or set another."
            )
    return problems


def _given_problem(value: Any, kind: str) -> str:
    if not isinstance(value, str) or not value:
        return "is no text" if value else ""  # an empty one is generated
    if kind in KEYS:
        return "" if _private_key(value, kind) else f"is no private key (PEM, {KEYS[kind][1]})"
    if kind == "fernet":
        try:
            return "" if len(base64.urlsafe_b64decode(value)) == 32 else "is no Fernet key (32 bytes in base64)"
        except ValueError:
            return "is no Fernet key (32 bytes in base64)"
    if not value.isprintable():
        return "has a character that cannot be printed (a newline at the end?)"
    letters = "".join(character for character in value.lower() if character.isalpha())
    if {letters, value.lower()} & set(WELL_KNOWN.split()):
        return "is one of the passwords that everybody tries first"
    if len(value) < SHORTEST:
        return f"is weak: it has fewer than {SHORTEST} characters"
    if len(set(value)) < FEWEST_CHARACTERS:
        return f"is weak: it has fewer than {FEWEST_CHARACTERS} different characters"
    return ""


def announced(catalogue: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> bool:
    """Say whether a rotation has keys that readers must know before writers use them."""
    return any(entry.get("kind") in ANNOUNCED for entry in catalogue.values() if entry.get("rotation") in names)


def notices(store: Store, names: Sequence[str]) -> list[str]:
    """Say what is left to do.

    Args:
        store: The files.
        names: The secrets' names.

    Returns:
        One sentence for each thing.
    """
    found = []
    if rotation := store.rotation():
        found.append(
            f"A rotation of {', '.join(rotation['names'])} is under way. If it was interrupted, finish it:"
            " ansible-playbook playbooks/rotate_secrets.yml."
        )
    if plain := store.plain_files(names):
        found.append(
            f"Not encrypted, though this run has a vault password. Write: ansible-vault encrypt {' '.join(plain)}"
        )
    return found


def login_name(name: str) -> str:
    """Return what the login that goes with a password is called: ``database_login`` for ``database_password``."""
    return name.replace("password", "login")


def other_login(entry: Mapping[str, Any], present: str) -> str:
    """Return the login that a login takes turns with.

    Args:
        entry: Of the catalogue, with the ``login`` that it has at first.
        present: That name, or the other one.

    Returns:
        The other of the two.
    """
    usual = str(entry["login"])
    return f"{usual}{entry.get('suffix', '_2')}" if present == usual else usual


class LookupModule(LookupBase):
    """The lookup: see DOCUMENTATION."""

    def store(self, variables: Mapping[str, Any]) -> Store:
        """Return the files of the host that these variables belong to."""
        dry = variables.get("ansible_check_mode") or variables.get("secrets_read_only")
        loader: Any = self._loader
        return Store(str(self.value(variables, "secrets_directory")), loader._vault, bool(dry))

    def value(self, variables: Mapping[str, Any], name: str, default: Any = None) -> Any:
        """Return a variable's value."""
        return self._template(variables[name]) if name in variables else default

    def _template(self, text: Any) -> Any:
        templar: Any = self._templar
        return templar.template(text)

    def run(self, terms: Sequence[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[Any]:
        """Return what is asked for, for each name."""
        variables = variables or {}
        self.set_options(var_options={}, direct=kwargs)
        part = self.get_option("part")
        catalogue = self.value(variables, "secrets_catalogue", {})
        store = self.store(variables)
        if part == "problems":
            problems = given_problems(self.value(variables, "secrets", {}), catalogue)
            opened = store.open_paths()
            if opened:
                problems.append(
                    f"{', '.join(opened)}: others on this machine may read or change secrets there. Write:"
                    f" chmod -R go= {store.directory}"
                )
            return [problems]
        if part == "notices":
            return [notices(store, list(catalogue))]
        if part == "missing":
            return [[name for name in catalogue if not (store.has(name) or self.given(variables, name))]]
        if part == "stage":
            return [store.rotation().get("stage", "")]
        if part == "announced":
            return [announced(catalogue, store.rotation().get("names", []))]
        return [self._one(str(name), part, variables, catalogue, store) for name in terms]

    announced = staticmethod(announced)

    def _one(
        self, name: str, part: str, variables: Mapping[str, Any], catalogue: Mapping[str, Any], store: Store
    ) -> Any:
        if name not in catalogue:
            raise AnsibleError(f"{name} is not in secrets_catalogue, which has: {', '.join(sorted(catalogue))}.")
        entry = catalogue[name]
        kind, usual = str(entry.get("kind", "password")), str(entry.get("login", ""))
        given = str(self.given(variables, name) or "")
        entries = [(given, "")] if given else store.entries(name, kind)
        if part in ("login", "former_login"):
            login = str(self.given(variables, login_name(name)) or entries[0][1] or usual)
            return login if part == "login" else other_login(entry, login)
        values = [value for value, _ in entries]
        if kind in KEYS:
            if not all(_private_key(value, kind) for value in values):
                raise AnsibleError(f"secrets.{name} is no private key (PEM, {KEYS[kind][1]}).")
            if part == "jwks":
                return jwks(values)
            values = [f"{value}\n" for value in values]
        if part == "values":
            return values
        if kind == "fernet":
            return given or ",".join(base64.b64encode(value.encode()).decode() for value in values)
        return values[0]

    def given(self, variables: Mapping[str, Any], name: str) -> Any:
        """Return what the user gives for a name; None for nothing."""
        # Of a dictionary only what is asked for: another entry's source may be out of reach.
        given = variables.get("secrets", {})
        given = given if isinstance(given, Mapping) else self._template(given)
        return self._template(given[name]) if isinstance(given, Mapping) and name in given else None
