"""The DAGs run for real, with this machine in the place of every VM."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

DAGS = pathlib.Path(__file__).parents[2] / "dags"

Topologies = dict[str, list[dict[str, Any]]]
WriteTargets = Callable[..., pathlib.Path]

Order = dict[str, Any]
Outcome = dict[str, Any]

AT = "2026-01-0{}T00:00:00+00:00"
UNLUCKY = "import sys\nif 'unlucky' in sys.argv[1]:\n    sys.exit('no luck today')\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An Airflow with a database of its own, and DAGs whose script refuses files with a certain name."""
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    shutil.copytree(DAGS, dags, ignore=shutil.ignore_patterns("__pycache__"))
    script = dags / "scripts/simple_file_manager.py"
    script.write_text(UNLUCKY + script.read_text())
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    subprocess.run(migrate, env=environment, check=True, capture_output=True, timeout=120)
    return environment


def run(environment: dict[str, str], *orders: Order) -> tuple[list[Outcome], str]:
    """Run DAGs one after the other, and return what became of them, with the log."""
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("run_dags.py"))],
        input=json.dumps(orders),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout), done.stderr


def failed(outcome: Outcome) -> list[str]:
    return sorted(task for task, state in outcome["tasks"].items() if state == "failed")


def file_of(kind: str, day: int) -> pathlib.Path:
    """The test file of the run of a day."""
    run_id = uuid.uuid5(uuid.NAMESPACE_OID, "manual__" + AT.format(day))
    return pathlib.Path(f"/tmp/{kind}.{run_id}.txt")  # noqa: S108 - as the DAG names it


def test_vm_execution(environment: dict[str, str], write_targets: WriteTargets, topologies: Topologies) -> None:
    vms = topologies["distributed"]
    order = {"dag_id": "remote_vm_execution", "conf": {}, "targets": str(write_targets(vms))}
    unreachable = order | {"targets": str(write_targets(vms, vm3="none"))}
    alone = order | {"targets": str(write_targets(topologies["one"]))}
    other = pathlib.Path("/tmp/test_file.of-another-run.txt")  # noqa: S108 - where the DAGs work
    other.touch()
    # In the way of the second run's transfer.
    os.mkfifo(file_of("received_file", 2))
    orders = [each | {"at": AT.format(day)} for day, each in enumerate([order, order, unreachable, alone], start=1)]
    try:
        (well, blocked, half, single), log = run(environment, *orders)
        assert other.exists()
    finally:
        other.unlink()
        file_of("received_file", 2).unlink(missing_ok=True)
    files = [file_of(kind, day) for day in (1, 2, 3, 4) for kind in ("test_file", "received_file")]
    assert [file for file in files if file.exists()] == []

    for outcome in (well, single):
        assert outcome["state"] == "success"
        assert set(outcome["tasks"].values()) == {"success"}
        assert outcome["run_id"] in outcome["xcoms"]["file_transfer_test.read return_value"]["output"]
    assert well["xcoms"]["check_all_vms.vm2 return_value"]["numbers"]["cpus"] > 0

    # What failed counts, although the cleaning up went well after it.
    assert (blocked["state"], failed(blocked)) == ("failed", ["file_transfer_test.transfer"])
    assert blocked["tasks"]["cleanup_test_files.vm2"] == blocked["tasks"]["cleanup_test_files.vm3"] == "success"

    assert half["state"] == "failed"
    assert half["tasks"]["check_all_vms.vm2"] == half["tasks"]["cleanup_test_files.vm2"] == "success"
    assert half["tasks"]["execute_on_specific_vm.uptime_on_vm2"] == "upstream_failed"
    assert "vm3 (192.168.83.131) is not well: hostname, uptime, df -h /," in log


NAMES = ["plain.txt", "a b\n{{ ds }} 'q\" $(id) é.txt", "blocked.txt", "unlucky.txt"]


def test_ftp_processing(
    environment: dict[str, str], write_targets: WriteTargets, topologies: Topologies, tmp_path: pathlib.Path
) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    dest.mkdir()
    for name in NAMES:
        (source / name).write_text(f"the file {name}")
        os.utime(source / name, (1_700_000_000, 1_700_000_000))
    os.mkfifo(dest / "blocked.txt")
    conf = {"paths": [str(source / "*.txt"), str(source / "missing.csv")], "dest_dir": str(dest)}
    order = {"dag_id": "remote_ftp_processing", "targets": str(write_targets(topologies["single_host"]))}
    alone = {"dag_id": order["dag_id"], "targets": str(write_targets(topologies["one"]))}
    unreachable = {"dag_id": order["dag_id"], "targets": str(write_targets(topologies["single_host"], vm2="none"))}
    (mixed, well, astray, nothing), log = run(
        environment,
        order | {"conf": conf, "at": AT.format(1)},
        order | {"conf": conf | {"paths": [str(source / "plain.txt")]}, "at": AT.format(2)},
        alone | {"conf": {"paths": [str(source / "plain.txt")]}, "at": AT.format(3)},
        unreachable | {"conf": conf, "at": AT.format(4)},
    )

    report = mixed["xcoms"]["report return_value"]
    assert [line["source_path"] for line in report] == sorted(str(source / name) for name in NAMES)
    odd, blocked, plain, unlucky = report
    for line, name in ((odd, NAMES[1]), (plain, NAMES[0])):
        assert (line["transferred"], line["processed"], line["error"]) == (True, True, None)
        assert line["figures"]["path"] == line["dest_path"] == str(dest / name)
        assert line["figures"]["size"] == (source / name).stat().st_size
        assert (dest / name).read_bytes() == (source / name).read_bytes()
    assert (blocked["transferred"], blocked["processed"], blocked["figures"]) == (False, False, None)
    assert "DestinationError" in blocked["error"]
    assert (unlucky["transferred"], unlucky["processed"], unlucky["figures"]) == (True, False, None)
    assert unlucky["error"].endswith("no luck today")
    assert mixed["state"] == "failed"
    assert failed(mixed) == ["each_file.process_files[3]", "each_file.transfer_files[1]", "report"]
    assert "2 of 4 files failed." in log

    assert (well["state"], set(well["tasks"].values())) == ("success", {"success"})
    assert len(well["xcoms"]["report return_value"]) == 1

    # With a single VM, a file's own path leads to itself.
    assert astray["state"] == "failed"
    assert "SameFileError" in astray["xcoms"]["report return_value"][0]["error"]

    assert (nothing["state"], failed(nothing)) == ("failed", ["report", "wait_for_source_files"])
    assert "There is no file to report on" in log
    assert sorted(path.name for path in source.iterdir()) == sorted(NAMES)
