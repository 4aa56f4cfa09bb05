"""Files that hosts are to have."""

import pathlib
import subprocess

import files
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]


def test_directories_come_first_and_once() -> None:
    found = files.below({"b/c/two.py": "2", "b/one.txt": "1"}, "/opt/a")
    assert [(entry["path"], entry["mode"], entry.get("content")) for entry in found] == [
        ("/opt/a", "0755", None),
        ("/opt/a/b", "0755", None),
        ("/opt/a/b/c", "0755", None),
        ("/opt/a/b/c/two.py", "0644", "2"),
        ("/opt/a/b/one.txt", "0644", "1"),
    ]


def test_what_is_above_the_root_is_left_alone() -> None:
    assert [entry["path"] for entry in files.below({"x": ""}, "/opt/a/b")] == ["/opt/a/b", "/opt/a/b/x"]


@pytest.fixture
def dags(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory as it lies on the control node, with modes that hosts do not have."""
    root = tmp_path / "dags"
    (root / "sub dir/__pycache__").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o700)
    for name in ("b.py", "-a.py", "sub dir/ä.py", ".airflowignore", "sub dir/__pycache__/b.pyc"):
        (root / name).write_text(name)
        (root / name).chmod(0o640)
    (root / "link").symlink_to("b.py")
    (root / "there").symlink_to("sub dir")
    return root


def asked(root: pathlib.Path) -> str:
    """What the role's own question says of a directory."""
    tasks = yaml.safe_load((ROOT / "roles/airflow/tasks/dags.yml").read_text())
    script = tasks[0]["query_host"]["cmd"].replace("{{ __airflow_dags_dir }}", f"'{root}'")
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split(" ")[0]


def delivered(root: pathlib.Path) -> None:
    """Give it the modes that it has on a host."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_host_that_has_it_all_says_the_same(dags: pathlib.Path) -> None:
    wanted = files.tree_digest(str(dags))
    assert asked(dags) != wanted
    delivered(dags)
    assert asked(dags) == wanted


@pytest.mark.parametrize(
    "change",
    [
        "echo more >> b.py",
        "chmod 0600 b.py",
        "chmod 0700 empty",
        "rm -r empty",
        "touch 'sub dir/c.py'",
        "mv -- -a.py a.py",
        "ln -sfn -- -a.py link",
        "ln -sfn empty there",
        "mkfifo fifo",
    ],
)
def test_what_differs_on_a_host_is_seen(dags: pathlib.Path, change: str) -> None:
    wanted = files.tree_digest(str(dags))
    delivered(dags)
    subprocess.run(["bash", "-ec", change], cwd=dags, check=True)
    assert asked(dags) != wanted


def test_what_python_leaves_behind_does_not_count(dags: pathlib.Path) -> None:
    delivered(dags)
    before = asked(dags)
    (dags / "__pycache__").mkdir()
    (dags / "__pycache__/b.pyc").write_text("compiled")
    assert (files.tree_digest(str(dags)), asked(dags)) == (before, before)


def test_what_is_not_there_is_another(tmp_path: pathlib.Path) -> None:
    assert asked(tmp_path / "nothing") == ""
