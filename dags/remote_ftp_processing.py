"""Wait for files on one VM, send each to another, process it there, and report on all.

The last two VMs of the inventory are source and destination; a single VM is both. A file that fails does
not stop the others: the report at the end says what became of each, and fails when one failed.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import posixpath
from collections.abc import Mapping
from typing import Any

from airflow.sdk import DAG, Param, task, task_group
from airflow.sdk.exceptions import AirflowFailException

from remote_tasks import RemoteFileSensor, RemoteFileTransferOperator, load_targets

SCRIPT = (pathlib.Path(__file__).parent / "scripts/simple_file_manager.py").read_text(encoding="utf-8")
PATHS = ["/home/rocky/in/sample1.txt", "/home/rocky/bon/in/sample3.txt"]


def destinations(files: list[str], dest_dir: str | None) -> list[dict[str, str]]:
    """Say where each file goes: to its own path, or into a directory."""
    sources = {posixpath.join(dest_dir, posixpath.basename(file)) if dest_dir else file: file for file in files}
    if lost := sorted(set(files) - set(sources.values())):
        raise AirflowFailException(f"{dest_dir} would hold two files of one name: {lost} and others. Narrow 'paths'.")
    return [{"source_path": source, "dest_path": dest} for dest, source in sources.items()]


def outcome(file: Mapping[str, str], copy: Any, run: Mapping[str, Any] | None, error: str | None) -> dict[str, Any]:
    """Say what became of a file."""
    figures = json.loads(run["output"]) if run else None
    said = None if run else error or "its task ended without a word; see the task's log"
    return {**file, "transferred": bool(copy), "processed": bool(run), "figures": figures, "error": said}


with DAG(
    dag_id="remote_ftp_processing",
    description="Files from one VM are sent to another and processed there, as they come",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
    catchup=False,
    tags=["remote"],
    params={
        "paths": Param(
            PATHS,
            type="array",
            items={"type": "string", "minLength": 1},
            minItems=1,
            description="Files on the source VM, one a line; *, ? and [...] are wildcards. The first to come start it.",
        ),
        "dest_dir": Param(
            None,
            type=["null", "string"],
            minLength=1,
            description="An existing directory on the destination VM; without it, each file keeps its path.",
        ),
    },
) as dag:
    vms = list(load_targets())
    source, dest = [vms[0], *vms][-2:]

    # dag.param and the outputs of tasks are handed on as they are: a template would read braces in a file's name.
    wait = RemoteFileSensor(
        task_id="wait_for_source_files",
        vm=source.name,
        paths=dag.param("paths"),
        poke_interval=120,
        timeout=3600,
    )

    @task
    def plan(files: list[str], params: Mapping[str, Any]) -> list[dict[str, str]]:
        """Say where each file goes."""
        return destinations(files, params["dest_dir"])

    @task_group
    def each_file(source_path: str, dest_path: str) -> None:
        """Send and process one file."""
        transfer = RemoteFileTransferOperator(
            task_id="transfer_files",
            source_vm=source.name,
            dest_vm=dest.name,
            source_path=source_path,
            dest_path=dest_path,
            map_index_template="{{ task.source_path[:250] }}",
        )

        # The script travels as standard input, so that nothing of it is left on the VM.
        @task.remote(vm=dest.name, stdin=SCRIPT, map_index_template="{{ task.command[-1][:250] }}")
        def process_files(copy: Mapping[str, Any]) -> list[str]:
            return ["python3", "-", copy["dest_path"]]

        process_files(transfer.output)

    @task(trigger_rule="all_done")
    def report(ti: Any, files: list[dict[str, str]] | None = None) -> None:
        """Say what became of each file, and fail when one failed."""
        if not files:
            raise AirflowFailException("There is no file to report on; see the tasks before this one.")

        def pulled(step: str, key: str) -> list[Any]:
            return ti.xcom_pull(task_ids=f"each_file.{step}", key=key, map_indexes=range(len(files)))

        steps = [(step, key) for key in ("return_value", "error") for step in ("transfer_files", "process_files")]
        outcomes = [
            outcome(file, copy, run, copy_error or run_error)
            for file, copy, run, copy_error, run_error in zip(files, *(pulled(*step) for step in steps), strict=True)
        ]
        # Pushed here, since what a failing task returns is lost.
        ti.xcom_push("return_value", outcomes)
        for line in outcomes:
            print(json.dumps(line, ensure_ascii=False))
        if failed := [f"{line['source_path']!r}: {line['error']}" for line in outcomes if line["error"]]:
            raise AirflowFailException(f"{len(failed)} of {len(outcomes)} files failed.\n" + "\n".join(failed))

    planned = plan(wait.output)
    each_file.expand_kwargs(planned) >> report(files=planned)
