"""How a VM is doing: raw answers of a few programs, and numbers with units in their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CHECKS: Mapping[str, str] = {
    "hostname": "hostname",
    "uptime": "uptime",
    "disk_usage": "df -h /",
    "memory": "free -m",
    "load": "cat /proc/loadavg",
}
"""The programs whose answers are passed on as they are."""

NUMBERS_COMMAND = (
    'export LC_ALL=C; cat /proc/uptime /proc/loadavg; echo "cpus $(nproc)"; '
    "grep -E '^(MemTotal|MemAvailable|SwapTotal|SwapFree):' /proc/meminfo; df -Pk / | tail -n 1"
)
"""Prints the same in the kernel's own units, for `parse_numbers`."""

_MEMORY = {
    "MemTotal": "memory_total_mib",
    "MemAvailable": "memory_available_mib",
    "SwapTotal": "swap_total_mib",
    "SwapFree": "swap_free_mib",
}


def parse_numbers(text: str) -> dict[str, float | int]:
    """Parse the output of `NUMBERS_COMMAND`.

    Args:
        text: The output; parts that are missing are left out of the result.

    Returns:
        ``uptime_seconds``, ``load_1min``, ``load_5min``, ``load_15min``, ``cpus``,
        ``memory_total_mib``, ``memory_available_mib``, ``swap_total_mib``, ``swap_free_mib``,
        ``disk_total_gib``, ``disk_free_gib``, ``disk_used_percent``.
    """
    numbers: dict[str, float | int] = {}
    for line in text.splitlines():
        words = line.split()
        if re.fullmatch(r"[\d.]+ [\d.]+", line):
            numbers["uptime_seconds"] = float(words[0])
        elif re.fullmatch(r"([\d.]+ ){3}\d+/\d+ \d+", line):
            for key, word in zip(("load_1min", "load_5min", "load_15min"), words, strict=False):
                numbers[key] = float(word)
        elif re.fullmatch(r"cpus \d+", line):
            numbers["cpus"] = int(words[1])
        elif memory := re.fullmatch(r"(\w+):\s+(\d+) kB", line):
            numbers[_MEMORY[memory[1]]] = round(int(memory[2]) / 1024)
        elif disk := re.fullmatch(r".+\s(\d+)\s+\d+\s+(\d+)\s+(\d+)%\s+/", line):
            numbers["disk_total_gib"] = round(int(disk[1]) / 1024**2, 1)
            numbers["disk_free_gib"] = round(int(disk[2]) / 1024**2, 1)
            numbers["disk_used_percent"] = int(disk[3])
    return numbers


def failed_command(host: str, command: str, error: BaseException, now: float) -> dict[str, Any]:
    """Return what stands in the place of a result when a VM could not be asked.

    Args:
        host: The VM's address.
        command: The command line.
        error: Why there is no result.
        now: The time, in seconds since 1970.

    Returns:
        The same keys as `CommandResult.to_dict`, with ``exit_code`` -1.
    """
    return {
        "host": host,
        "command": command,
        "exit_code": -1,
        "output": "",
        "error": f"{type(error).__name__}: {error}",
        "success": False,
        "timestamp": now,
        "duration": 0.0,
        "truncated": False,
        "signal": None,
    }
