"""A sensor for files on a VM."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowException

from remote_tasks.errors import ConnectError, RemoteTasksError
from remote_tasks.operators import as_airflow_error, queue_of_vm
from remote_tasks.runtime import run_command
from remote_tasks.targets import load_targets

if TYPE_CHECKING:
    from airflow.sdk import Context

_WILDCARD = re.compile(r"[*?]|\[[!^]?[A-Za-z0-9._-]+\]")

# Two looks, so that a file that grows between them shows; a line of NULs apart.
_LOOK = """export LC_ALL=C
look() { n=0; now=$(date +%%s); for f in "$@"; do if [ -f "$f" ]; then
s=$(stat -L -c "%%s %%Y %%i" -- "$f") || continue; m=${s#* }
if [ $((now - ${m%% *})) -ge %(min_age)d ]; then n=1
printf "%%s\\0%%s\\0" "$s" "$f"; fi; fi; done; }
set -- %(patterns)s
look "$@"; if [ "$n" = 1 ]; then sleep %(settle)s; printf "\\0\\0"; look "$@"; fi"""


def quote_pattern(path: str) -> str:
    """Quote a path for the shell, its wildcards excepted.

    Args:
        path: A path with ``*``, ``?`` or ``[...]``, or without.

    Returns:
        A word for the shell.
    """
    parts: list[str] = []
    end = 0
    for match in _WILDCARD.finditer(path):
        parts += [path[end : match.start()], match[0]]
        end = match.end()
    parts.append(path[end:])
    return "".join(
        shlex.quote(part) if index % 2 == 0 and part else part for index, part in enumerate(parts)
    )


def look_script(paths: Sequence[str], *, min_age: float, settle: float) -> str:
    """Build the script that looks for files twice.

    Args:
        paths: Paths and patterns.
        min_age: Seconds since the last change that a file must have rested, by the VM's clock.
        settle: Seconds between the two looks.

    Returns:
        A shell script; its output is for `parse_look`.
    """
    return _LOOK % {
        "min_age": int(min_age),
        "settle": f"{settle:g}",
        "patterns": " ".join(quote_pattern(path) for path in paths),
    }


def parse_look(output: str) -> list[str]:
    """Parse the output of a look.

    Args:
        output: What the script wrote.

    Returns:
        The files that were the same both times, sorted.
    """
    first, _, second = output.partition("\0\0\0")
    seen = []
    for part in (first + "\0", second):
        words = part.split("\0")[:-1]
        seen.append(set(zip(words[1::2], words[0::2], strict=False)))
    return sorted({path for path, _ in seen[0] & seen[1]})


class RemoteFileSensor(BaseSensorOperator):
    """Wait for files on a VM, and hand on those that are complete.

    A file counts when nobody has changed it for ``min_age`` seconds, and when it stays the same
    during the look. Between looks the task is rescheduled and holds no slot. A VM that cannot be
    reached is a file that is not there yet; ``timeout`` bounds that too.

    The paths found, a sorted list, go to XCom.

    Args:
        vm: The VM's name. The task goes to its queue.
        paths: A path or a list of them; ``*``, ``?`` and ``[...]`` are wildcards.
        require_all: Whether every entry of ``paths`` must have a file; by default one file will do.
        min_age: Seconds that a file must have rested, by the VM's own clock.
        settle: Seconds between the two looks at a file.
        kwargs: What every sensor takes (``poke_interval``, ``timeout``, ``soft_fail`` ...);
            ``mode`` is ``reschedule`` by default.

    Raises:
        UnknownTargetError: The DAG names a VM that is not in the targets file.
    """

    template_fields: Sequence[str] = ("vm", "paths")
    ui_color = "#faf4e8"

    def __init__(
        self,
        *,
        vm: str,
        paths: str | Sequence[str],
        require_all: bool = False,
        min_age: float = 10.0,
        settle: float = 1.0,
        **kwargs: Any,  # noqa: ANN401 - handed on to BaseSensorOperator
    ) -> None:
        kwargs.setdefault("queue", queue_of_vm(vm))
        kwargs.setdefault("mode", "reschedule")
        super().__init__(**kwargs)
        self.vm = vm
        self.paths = paths
        self.require_all = require_all
        self.min_age = min_age
        self.settle = settle

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:  # noqa: ANN401 - as BaseOperator.partial
        """Set the queue of a mapped task too, whose ``__init__`` runs too late for that."""
        kwargs.setdefault("queue", queue_of_vm(kwargs.get("vm")))
        return super().partial(**kwargs)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once.

        Args:
            context: Airflow's context.

        Returns:
            Whether to go on, with the list of files.

        Raises:
            AirflowException: The VM refuses, or the look itself fails.
        """
        paths = [self.paths] if isinstance(self.paths, str) else list(self.paths)
        if not paths or not all(isinstance(path, str) and path for path in paths):
            raise AirflowException(f"paths must be a path or a list of paths, got {self.paths!r}.")
        # Each entry by itself, so that it is known which one has a file.
        found = [self._look([path]) for path in paths] if self.require_all else [self._look(paths)]
        files = sorted({file for entry in found for file in entry})
        self.log.info("On %s: %s", self.vm, ", ".join(map(repr, files)) or "nothing yet")
        return PokeReturnValue(is_done=all(found), xcom_value=files)

    def _look(self, paths: list[str]) -> list[str]:
        try:
            targets = load_targets()
            result = run_command(
                targets.get(self.vm),
                look_script(paths, min_age=self.min_age, settle=self.settle),
                settings=targets.settings,
                timeout=self.settle + 60,
            )
        except ConnectError as error:
            self.log.warning("%s Looking again later.", error)
            return []
        except RemoteTasksError as error:
            raise as_airflow_error(error) from error
        if not result.success:
            raise AirflowException(f"Looking on {self.vm} failed: {result.stderr.strip()}")
        return parse_look(result.stdout)
