"""The lookup of secrets, by ansible-playbook itself: real files, a real vault, real processes."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import pathlib
import stat
import subprocess
from collections.abc import Sequence
from typing import Any

import cluster
import cluster_secret
import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, VaultSecret, is_encrypted
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

ROOT = pathlib.Path(__file__).parents[2]
CATALOGUE = {
    **yaml.safe_load((ROOT / "group_vars/all/secrets.yml").read_text())["secrets_of_the_cluster"],
    **cluster.vm_secrets(["a", "b"]),
    **cluster.host_secrets({"target_vms": ["a", "b"]}),
}
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
GOOD = "nBnT4vdqNAPPW2ka"


def vault(*passwords: str) -> VaultLib:
    return VaultLib([(f"id{number}", VaultSecret(text.encode())) for number, text in enumerate(passwords)])


def store(path: pathlib.Path, *passwords: str, dry: bool = False) -> cluster_secret.Store:
    cluster_secret.Store._texts.clear()
    return cluster_secret.Store(str(path / "secrets"), vault(*passwords), dry)


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def playbook(tmp_path: pathlib.Path) -> pathlib.Path:
    """Writes what the variables of the catalogue are, on three hosts at once, to a file for each."""
    variables = yaml.safe_load((ROOT / "group_vars/all/secrets.yml").read_text())
    # A host's private key is another for each, which this is not about.
    names = [name for name in variables if "secret_" in name and name != "secret_tls_key"]
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "name": "Look",
                "ansible.builtin.copy": {
                    "content": "{{ {" + ", ".join(f"'{name}': {name}" for name in names) + "} | to_json }}",
                    "dest": f"{tmp_path}/{{{{ inventory_hostname }}}}.json",
                    "mode": "0600",
                },
                "check_mode": False,
                "diff": False,
            }
        ],
    }
    hosts = {
        "all": {
            "hosts": dict.fromkeys("abc"),
            "children": {"target_vms": {"hosts": dict.fromkeys("ab")}},
            "vars": LOCAL,
        }
    }
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(hosts))
    (tmp_path / "group_vars").symlink_to(ROOT / "group_vars")
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([play]))
    return path


def run(playbook: pathlib.Path, *arguments: str, check: bool = True) -> tuple[str, list[Any]]:
    command = ["ansible-playbook", "-i", str(playbook.parent / "inventory.yml"), str(playbook), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == check, said
    return said, [json.loads(path.read_text()) for path in sorted(playbook.parent.glob("?.json"))]


def test_one_value_for_all_hosts_and_runs(playbook: pathlib.Path) -> None:
    _, first = run(playbook)
    assert len(first) == 3
    assert first[0] == first[1] == first[2]
    directory = playbook.parent / "secrets"
    assert {path.name for path in directory.iterdir()} == {name for name in CATALOGUE if not name.startswith("tls_")}
    assert mode(directory) == 0o700
    assert {mode(path) for path in directory.iterdir()} == {0o600}
    _, again = run(playbook)
    assert again == first
    assert len(base64.urlsafe_b64decode(first[0]["secret_fernet_key"])) == 32
    assert len(first[0]["secret_database_password"]) == 32
    assert len(first[0]["secret_api_secret_key"]) == 64
    assert first[0]["secret_database_login"] == "airflow_user"
    assert first[0]["secret_broker_logins"] == {"a": "a", "b": "b"}
    assert first[0]["secret_broker_former_logins"] == ["airflow_user_2", "airflow_flower_2", "a.2", "b.2"]


def test_a_vault_password_encrypts_and_is_needed_from_then_on(playbook: pathlib.Path) -> None:
    password = playbook.parent / "vault-password"
    password.write_text("a vault password")
    _, plain = run(playbook)
    directory = playbook.parent / "secrets"
    kept = (directory / "admin_password").read_text()
    for path in directory.iterdir():
        if path.name != "admin_password":
            path.unlink()
    _, first = run(playbook, "--vault-password-file", str(password))
    assert (directory / "admin_password").read_text() == kept
    assert first[0]["secret_admin_password"] == plain[0]["secret_admin_password"]
    for path in directory.iterdir():
        assert is_encrypted(path.read_bytes()) == (path.name != "admin_password")
    subprocess.run(
        ["ansible-vault", "encrypt", "--vault-password-file", str(password), str(directory / "admin_password")],
        check=True,
        capture_output=True,
    )
    _, again = run(playbook, "--vault-password-file", str(password))
    assert again == first
    said, _ = run(playbook, check=False)
    assert "this run has no vault password. Add --vault-password-file" in " ".join(said.split())
    password.write_text("another")
    said, _ = run(playbook, "--vault-password-file", str(password), check=False)
    assert "encrypted with another vault password" in " ".join(said.split())


def test_a_check_writes_nothing(playbook: pathlib.Path) -> None:
    _, found = run(playbook, "--check")
    assert found[0] == found[1] == found[2]
    assert not (playbook.parent / "secrets").exists()
    assert len(set(map(str, found[0].values()))) == len(found[0]) - 1  # airflow_user logs in at two places


def test_what_the_user_gives_wins(playbook: pathlib.Path) -> None:
    given = {"database_password": "{{ 'from-a-lookup' }}", "database_login": "airflow_user_2", "admin_password": ""}
    _, found = run(playbook, "--extra-vars", json.dumps({"secrets": given}))
    assert found[0]["secret_database_password"] == "from-a-lookup"
    assert found[0]["secret_database_login"] == "airflow_user_2"
    assert len(found[0]["secret_admin_password"]) == 32
    assert not (playbook.parent / "secrets/database_password").exists()


def steps(playbook: pathlib.Path, *wanted: dict[str, Any]) -> None:
    """Make the playbook take steps of a rotation, with a note of what is used after each."""
    look = {
        "stage": "{{ taken.stage }}",
        "names": "{{ taken.names }}",
        "changed": "{{ taken is changed }}",
        "login": "{{ secret_broker_logins.a }}",
        "former": "{{ secret_broker_former_logins | last }}",
        "password": "{{ secret_broker_password }}",
        "keys": "{{ secret_fernet_key.split(',') }}",
        "trusted": "{{ (secret_jwt_public_keys | from_json)['keys'] | map(attribute='kid') }}",
        "admin": "{{ secret_admin_password }}",
    }
    tasks: list[dict[str, Any]] = [{"ansible.builtin.set_fact": {"noted": []}}]
    for arguments in wanted:
        tasks += [
            {"cluster_rotation": arguments, "register": "taken"},
            {"ansible.builtin.set_fact": {"noted": "{{ noted + [look] }}"}, "vars": {"look": look}},
        ]
    note = {"content": "{{ noted | to_json }}", "dest": f"{playbook.parent}/a.json", "mode": "0600"}
    play = {"hosts": "a", "gather_facts": False, "tasks": [*tasks, {"ansible.builtin.copy": note, "diff": False}]}
    playbook.write_text(yaml.safe_dump([play]))


@pytest.mark.parametrize("vaulted", [False, True])
def test_the_steps_of_a_rotation(playbook: pathlib.Path, vaulted: bool) -> None:
    password = playbook.parent / "vault-password"
    password.write_text("a vault password")
    arguments = ["--vault-password-file", str(password)] if vaulted else []
    names = ["broker", "fernet", "jwt"]
    again = {"step": "begin", "names": []}  # whatever it is asked for, it goes on with what is under way
    steps(
        playbook,
        {"step": "switch"},
        {"step": "begin", "names": names},
        again,
        {"step": "end"},
        {"step": "switch"},
        again,
        {"step": "finish"},
        again,
        {"step": "end"},
        {"step": "end"},
    )
    _, [noted] = run(playbook, *arguments)
    before, begun, begun_again, not_ended, switched, switched_again, finished, finished_again, ended, over = noted
    assert [note["stage"] for note in noted] == ["", *["announce"] * 3, *["switch"] * 2, *["finish"] * 2, "", ""]
    assert [note["changed"] for note in noted] == [False, True, False, False, True, False, True, False, True, False]
    assert begun["names"] == finished["names"] == names
    for unchanged in (begun, begun_again, not_ended):
        assert (unchanged["login"], unchanged["former"]) == ("a", "b.2")
        assert unchanged["password"] == before["password"]
        assert unchanged["keys"][0] == before["keys"][0]
        assert unchanged["trusted"][0] == before["trusted"][0]
        assert len(unchanged["keys"]) == len(unchanged["trusted"]) == 2
    for changed in (switched, switched_again):
        assert (changed["login"], changed["former"]) == ("a.2", "b")
        assert changed["password"] != before["password"]
        assert changed["keys"] == begun["keys"][::-1]
        assert changed["trusted"] == begun["trusted"][::-1]
    for done in (finished, finished_again, ended, over):
        assert (done["login"], done["former"], done["password"]) == ("a.2", "b", switched["password"])
        assert done["keys"] == switched["keys"][:1]
        assert done["trusted"] == switched["trusted"][:1]
    assert {note["admin"] for note in noted} == {before["admin"]}
    assert {path.name for path in (playbook.parent / "secrets").iterdir()} <= set(CATALOGUE)
    # Passwords alone need no announcement, and the login is the first again.
    steps(playbook, {"step": "begin", "names": ["broker"]}, {"step": "finish"}, {"step": "end"})
    _, [noted] = run(playbook, *arguments)
    assert [(note["stage"], note["login"]) for note in noted] == [("switch", "a"), ("finish", "a"), ("", "a")]


def test_a_rotation_leaves_alone_what_the_user_gives(playbook: pathlib.Path) -> None:
    given = ["--extra-vars", json.dumps({"secrets": {"admin_password": GOOD}})]
    steps(playbook, {"step": "begin", "names": ["admin"]})
    said, _ = run(playbook, *given, check=False)
    assert "secrets.admin_password: you set this in the inventory" in " ".join(said.split())
    assert GOOD not in said
    assert not (playbook.parent / "secrets/rotation").exists()
    steps(playbook, {"step": "begin"})
    _, [noted] = run(playbook, *given)
    assert "admin" not in noted[0]["names"]
    assert {"broker", "fernet", "jwt", "database"} <= set(noted[0]["names"])
    assert noted[0]["admin"] == GOOD


def make(path: pathlib.Path) -> str:
    return store(path).entries("admin_password", "password")[0][0]


def test_two_at_once_get_one_value(tmp_path: pathlib.Path) -> None:
    for round_ in range(5):
        with concurrent.futures.ProcessPoolExecutor(8) as pool:
            values = set(pool.map(make, [tmp_path / str(round_)] * 16))
        assert len(values) == 1
        assert [path.name for path in (tmp_path / str(round_) / "secrets").iterdir()] == ["admin_password"]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("password", "", "is empty"),
        ("password", "\n", "is empty"),
        ("password", "short", "is damaged"),
        ("password", "two lines\nof text", "is damaged"),
        ("password", b"\xff\xfe" * 20, "is damaged"),
        ("fernet", "x" * 31, "is damaged"),
        ("ed25519", "-----BEGIN PRIVATE KEY-----\nMC4C", "is damaged"),
        ("password", b"$ANSIBLE_VAULT;1.1;AES256\n6161", "has no vault password"),
    ],
)
def test_a_damaged_file_is_named_and_kept(tmp_path: pathlib.Path, kind: str, text: str | bytes, said: str) -> None:
    found = store(tmp_path)
    found.directory.mkdir()
    path = found.directory / "x"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnsibleError, match=said) as error:
        found.entries("x", kind)
    assert str(path) in str(error.value)
    assert text in ("", "\n") or str(text)[:8] not in str(error.value)
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())


def test_a_damaged_vault_is_named(tmp_path: pathlib.Path) -> None:
    store(tmp_path, "one").entries("x", "key")
    path = tmp_path / "secrets/x"
    path.write_text(path.read_text()[:-20] + "\n")
    with pytest.raises(AnsibleError, match="or is damaged"):
        store(tmp_path, "one").entries("x", "key")


def test_the_first_of_several_vault_passwords_encrypts(tmp_path: pathlib.Path) -> None:
    value = store(tmp_path, "one", "two").entries("x", "key")
    assert store(tmp_path, "one").entries("x", "key") == value
    assert store(tmp_path, "three", "one").entries("x", "key") == value


def test_a_directory_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secrets").write_text("a file")
    with pytest.raises(AnsibleError, match="secrets"):
        store(tmp_path).entries("x", "password")


def test_a_rotation_knows_both_values_and_then_the_new_one(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path, "vault password")
    old = found.entries("x", "password")[0]
    found.mark({"stage": "announce", "names": ["x"]})
    found.begin("x", "password", "airflow_user_2")
    found.begin("x", "password", "airflow_user_2")  # a run that goes on
    assert is_encrypted((tmp_path / "secrets/x.new").read_bytes())
    assert mode(tmp_path / "secrets/x.new") == 0o600
    announced = found.entries("x", "password")
    assert announced[0] == old
    new = announced[1]
    assert new[0] != old[0]
    assert new[1] == "airflow_user_2"
    found.mark({"stage": "switch", "names": ["x"]})
    assert found.entries("x", "password") == [new, old]
    found.mark({"stage": "finish", "names": ["x"]})
    assert found.entries("x", "password") == [new]
    assert found.put("x")
    assert not found.put("x")
    assert found.entries("x", "password") == [new]
    found.mark(None)
    assert found.entries("x", "password") == [new]
    assert found.rotation() == {}
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["x"]


def test_what_is_left_of_no_rotation_is_not_used(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path)
    old = found.entries("x", "password")
    found.begin("x", "password", "")
    assert found.entries("x", "password") == old


@pytest.mark.parametrize("text", ["", "[]", '{"stage": "later", "names": []}', '{"names": []}'])
def test_a_damaged_rotation_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    found = store(tmp_path)
    found.entries("x", "password")
    (found.directory / "rotation").write_text(text)
    with pytest.raises(AnsibleError, match="rotation is damaged"):
        found.entries("x", "password")


def test_what_others_may_read_is_named(tmp_path: pathlib.Path) -> None:
    found = store(tmp_path)
    assert found.open_paths() == []
    found.entries("x", "password")
    found.entries("y", "password")
    assert found.open_paths() == []
    (found.directory / "y").chmod(0o640)
    assert found.open_paths() == [str(found.directory / "y")]
    found.directory.chmod(0o755)
    assert found.open_paths() == [str(found.directory), str(found.directory / "y")]


def test_what_is_left_to_do(tmp_path: pathlib.Path) -> None:
    assert cluster_secret.notices(store(tmp_path), ["x"]) == []
    store(tmp_path).entries("x", "password")
    assert cluster_secret.notices(store(tmp_path), ["x"]) == []
    found = store(tmp_path, "vault")
    found.mark({"stage": "switch", "names": ["x"]})
    rotation, plain = cluster_secret.notices(found, ["x"])
    assert "A rotation of x is under way" in rotation
    assert f"ansible-vault encrypt {tmp_path}/secrets/x" in plain


def test_plain_files_are_named_when_there_is_a_vault(tmp_path: pathlib.Path) -> None:
    store(tmp_path).entries("x", "password")
    assert store(tmp_path).plain_files(["x", "y"]) == []
    assert store(tmp_path, "vault").plain_files(["x", "y"]) == [str(tmp_path / "secrets/x")]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("database_password", "airflow_pass", "tries first"),
        ("database_password", "Airflow-Pass-2024", "tries first"),
        ("admin_password", "password12345678", "tries first"),
        ("admin_password", "shortish7", "fewer than 12 characters"),
        ("admin_password", "abababababab", "fewer than 6 different"),
        ("admin_password", 123456789012, "is no text"),
        ("admin_password", GOOD + "\n", "cannot be printed"),
        ("fernet_key", GOOD, "is no Fernet key"),
        ("jwt_private_key", GOOD, "is no private key"),
        ("admin_pasword", GOOD, "there is no such secret"),
        ("database_login", "somebody", "write airflow_user or airflow_user_2"),
    ],
)
def test_a_secret_that_is_given_and_bad(name: str, value: Any, said: str) -> None:
    problems = cluster_secret.given_problems({name: value}, CATALOGUE)
    assert len(problems) == 1
    assert problems[0].startswith(f"secrets.{name}")
    assert said in problems[0]
    assert str(value) not in problems[0]


def test_secrets_that_are_given_and_good() -> None:
    given = {
        "database_password": GOOD,
        "database_login": "airflow_user_2",
        "fernet_key": base64.urlsafe_b64encode(bytes(range(32))).decode(),
        "jwt_private_key": cluster_secret.generated("ed25519"),
        "admin_password": "",
    }
    assert cluster_secret.given_problems(given, CATALOGUE) == []
    assert cluster_secret.given_problems("a text", CATALOGUE) != []


def thumbprints(pems: Sequence[str]) -> list[str]:
    return [key["kid"] for key in json.loads(cluster_secret.jwks(pems))["keys"]]


def test_public_keys_have_the_ids_that_airflow_gives_them() -> None:
    """The key and the thumbprint of RFC 8037, appendix A."""
    seed = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    found = json.loads(cluster_secret.jwks([cluster_secret.pem(key), cluster_secret.generated("ed25519")]))["keys"]
    assert found[0] == {
        "crv": "Ed25519",
        "kty": "OKP",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }
    assert len(found) == 2
    assert serialization.load_pem_private_key(cluster_secret.generated("ed25519").encode(), password=None)


def test_a_key_that_cannot_sign_task_tokens_is_refused() -> None:
    with pytest.raises(AnsibleError, match="no Ed25519 private key"):
        cluster_secret.jwks([cluster_secret.generated("ed25519"), "not a key"])


def looked_at(directory: pathlib.Path, files: dict[str, str]) -> list[str]:
    """What preflight's own command says of files on a host."""
    (directory / "secrets").mkdir(parents=True)
    for name, text in files.items():
        (directory / "secrets" / name).write_text(text)
    tasks = yaml.safe_load((ROOT / "roles/preflight/tasks/main.yml").read_text())
    (task,) = [task for task in tasks if task["name"] == "Look which secrets the host has"]
    command = task["query_host"]["cmd"].replace("{{ cluster_config_dir }}", str(directory))
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


HOST = {
    "sql_alchemy_conn": "postgresql+psycopg://airflow_user:a%2Fb%40c@192.0.2.1:5432/airflow_db",
    "broker_url": "amqp://airflow_user:one-password@192.0.2.1:5672/airflow_host",
    "flower_basic_auth": "admin:with:colon",
    "fernet_key": "A" * 43 + "=",
    "jwt_private_key": cluster_secret.generated("ed25519") + "\n",
    "jwt_public_keys": '{"keys": []}',
}


@pytest.mark.parametrize(
    ("changed", "missing", "said"),
    [
        ({}, [], ""),
        # Another address is no other secret, and one that was damaged on the host is put right.
        ({"sql_alchemy_conn": HOST["sql_alchemy_conn"].replace("192.0.2.1", "db.example.org:5433?x=y")}, [], ""),
        ({"fernet_key": "damaged"}, [], ""),
        ({"sql_alchemy_conn": HOST["sql_alchemy_conn"].replace("a%2F", "b%2F")}, [], "another sql_alchemy_conn than"),
        ({"flower_basic_auth": "admin:with:coloN"}, [], "another flower_basic_auth than"),
        ({"jwt_private_key": cluster_secret.generated("ed25519") + "\n"}, [], "another jwt_private_key than"),
        # The other login of two that take turns: this host was rotated from elsewhere.
        ({"broker_url": HOST["broker_url"].replace("airflow_user", "airflow_user_2")}, [], "another broker_url than"),
        ({"broker_url": HOST["broker_url"].replace("airflow_user", "airflow_user.2")}, [], "another broker_url than"),
        ({"broker_url": "amqp://vm2:another-one@192.0.2.1:5672/airflow_host"}, [], ""),
        ({}, ["fernet_key"], "has fernet_key, and this control node has no such secret"),
    ],
)
def test_secrets_of_a_host_are_compared(
    tmp_path: pathlib.Path, changed: dict[str, str], missing: list[str], said: str
) -> None:
    lines = looked_at(tmp_path, {**HOST, "of_an_older_release": "x", **changed})
    assert len(lines) == len(HOST) + 1
    problems = cluster.secret_problems(HOST, lines, missing, "vm2", "/secrets")
    if not said:
        assert problems == []
        return
    (problem,) = problems
    assert said in problem
    assert "vm2" in problem and "/secrets" in problem and "-e preflight_accept_secrets=true" in problem
    assert not [line for line in lines if line.split()[3][:8] in problem]


def test_a_secret_that_is_yet_to_be_made_is_missing_in_a_url(tmp_path: pathlib.Path) -> None:
    value = store(tmp_path, dry=True).entries("broker_password", "password")[0][0]
    assert cluster.STAND_IN == cluster_secret.STAND_IN
    lines = looked_at(tmp_path, HOST)
    (problem,) = cluster.secret_problems(
        {"broker_url": f"amqp://airflow_user:{value}@192.0.2.1/x"}, lines, [], "vm2", "/secrets"
    )
    renamed = {"broker_url": f"amqp://vm2:{value}@192.0.2.1/x"}  # by a new release
    assert cluster.secret_problems(renamed, lines, [], "vm2", "/secrets") == []
    assert "has broker_url, and this control node has no such secret" in problem


def test_a_host_without_secrets_is_no_problem(tmp_path: pathlib.Path) -> None:
    assert cluster.secret_problems(HOST, looked_at(tmp_path, {})[:0], [], "vm2", "/secrets") == []
