from __future__ import annotations

from conftest import run
from remote_tasks.status import NUMBERS_COMMAND, failed_command, parse_numbers
from remote_tasks.targets import Target

OUTPUT = """\
93784.52 180000.11
0.52 0.58 0.59 1/234 5678
cpus 4
MemTotal:        8140032 kB
MemAvailable:    6012345 kB
SwapTotal:             0 kB
SwapFree:              0 kB
/dev/mapper/rl-root  72313860 8211908 64101952      12% /
"""


def test_all_numbers_with_their_units() -> None:
    assert parse_numbers(OUTPUT) == {
        "uptime_seconds": 93784.52,
        "load_1min": 0.52,
        "load_5min": 0.58,
        "load_15min": 0.59,
        "cpus": 4,
        "memory_total_mib": 7949,
        "memory_available_mib": 5871,
        "swap_total_mib": 0,
        "swap_free_mib": 0,
        "disk_total_gib": 69.0,
        "disk_free_gib": 61.1,
        "disk_used_percent": 12,
    }


def test_what_is_missing_is_left_out() -> None:
    assert parse_numbers("") == {}
    assert parse_numbers("cpus 2\nsh: nproc: not found\n") == {"cpus": 2}


def test_a_real_machine_has_them_all(vm: Target) -> None:
    numbers = parse_numbers(run(vm, NUMBERS_COMMAND).stdout)
    assert numbers.keys() == parse_numbers(OUTPUT).keys()
    assert numbers["cpus"] >= 1
    assert numbers["uptime_seconds"] > 0


def test_a_failure_looks_like_a_result() -> None:
    failed = failed_command("192.0.2.1", "hostname", OSError("no route"), 5.0)
    assert failed["success"] is False
    assert failed["error"] == "OSError: no route"
    assert failed["exit_code"] == -1
