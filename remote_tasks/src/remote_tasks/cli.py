"""The command ``remote-tasks``, for a person on the main host.

Exit codes: that of the command for ``run`` on one VM; 0 and 1 for everything else's success and
failure; 2 for a wrong call, path or targets file; 255 when a VM could not be reached; 130 after
Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from remote_tasks import __version__, actions
from remote_tasks.errors import (
    CommandError,
    DagCheckError,
    QueueError,
    RemoteTasksError,
    ResultTimeoutError,
    TargetsFileError,
    TransferError,
    TransportError,
    UnknownTargetError,
)
from remote_tasks.targets import TARGETS_FILE_VARIABLE, Target, load_targets

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 255
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns:
        The parser of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="remote-tasks", description="Commands and files on target VMs.", epilog=__doc__
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--targets", metavar="FILE", help="the targets file to use")
    json_option = argparse.ArgumentParser(add_help=False)
    json_option.add_argument("--json", action="store_true", help="print JSON, for scripts")
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")

    commands.add_parser("list", parents=[json_option], help="list the target VMs")

    run = commands.add_parser(
        "run",
        parents=[json_option],
        help="run a command on one VM or on all",
        description="Run a command. One word after '--' is a shell command line; several are "
        "arguments and arrive exactly as they are.",
        usage="remote-tasks run [-h] [--json] [-i] [--queue] [--timeout S] (VM | --all) -- COMMAND",
    )
    run.add_argument("--all", action="store_true", help="on all VMs at once")
    run.add_argument(
        "--queue", action="store_true", help="through the VM's queue and worker, not directly"
    )
    run.add_argument("--timeout", type=float, metavar="S", help="seconds the command may run")
    run.add_argument(
        "-i", "--stdin", action="store_true", help="pass on standard input to the command"
    )
    run.add_argument("words", nargs="*", metavar="VM -- COMMAND")

    status = commands.add_parser("status", parents=[json_option], help="ask VMs how they are")
    status.add_argument("vms", nargs="*", metavar="VM", help="by default all")

    copy = commands.add_parser(
        "copy", parents=[json_option], help="send a file or a directory from one VM to another"
    )
    copy.add_argument("source", metavar="VM:PATH")
    copy.add_argument("dest", metavar="VM:PATH")
    copy.add_argument(
        "--queue", action="store_true", help="through file_transfer_queue, not directly"
    )
    copy.add_argument("--timeout", type=float, metavar="S", help="seconds it may take")

    queues = commands.add_parser(
        "queues", parents=[json_option], help="how much waits in the queues, and who takes it"
    )
    queues.add_argument("queues", nargs="*", metavar="QUEUE", help="by default all of the cluster")

    check = commands.add_parser(
        "check-dags",
        parents=[json_option],
        help="look for DAGs that name a queue without a consumer",
        description="Import DAGs as Airflow does, and name each task whose queue has no consumer: "
        "it would wait forever. Needs Airflow, but neither its database nor a VM.",
    )
    check.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="files and folders; by default Airflow's DAGs folder",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments; by default the process's own.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    # argparse forgets where '--' stood: keep what follows to ourselves.
    tail: list[str] | None = None
    if "--" in given:
        split = given.index("--")
        given, tail = given[:split], given[split + 1 :]
    options = parser.parse_args(given)
    if options.targets:
        os.environ[TARGETS_FILE_VARIABLE] = options.targets
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.action == "list":
            return _list(options)
        if options.action == "run":
            return _run(options, tail, parser)
        if options.action == "status":
            return _status(options)
        if options.action == "queues":
            return _queues(options)
        if options.action == "check-dags":
            return _check_dags(options, tail or [])
        return _copy(options, parser)
    except (TargetsFileError, UnknownTargetError, CommandError, DagCheckError) as error:
        return _fail(error, EXIT_USAGE)
    except (TransportError, QueueError, ResultTimeoutError) as error:
        return _fail(error, EXIT_UNREACHABLE)
    except RemoteTasksError as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        killed = "" if options.action == "check-dags" else "; the command was killed on its VM"
        print(f"remote-tasks: interrupted{killed}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone (| head); what ran was killed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(error: Exception, code: int) -> int:
    print(f"remote-tasks: {error}", file=sys.stderr)
    return code


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _list(options: argparse.Namespace) -> int:
    targets = load_targets()
    if options.json:
        keys = ("name", "transport", "host", "port", "user", "queue", "description")
        _print_json([{key: getattr(target, key) for key in keys} for target in targets])
    else:
        rows = [(t.name, t.transport, _address(t), t.queue, t.description) for t in targets]
        _print_table(("VM", "TRANSPORT", "ADDRESS", "QUEUE", "DESCRIPTION"), rows)
    return 0


def _address(target: Target) -> str:
    if target.transport == "ssh":
        return f"{target.user}@{target.host}:{target.port}"
    return f"{target.user}@{target.host}" if target.user else target.host


def _run(
    options: argparse.Namespace, tail: list[str] | None, parser: argparse.ArgumentParser
) -> int:
    words, command = list(options.words), tail
    if command is None:
        cut = 0 if options.all else 1
        words, command = words[:cut], words[cut:]
    if len(words) != (0 if options.all else 1) or not command:
        parser.error("run needs a VM or --all, and then a command: run vm2 -- hostname")
    line: str | list[str] = command[0] if len(command) == 1 else command
    if options.all:
        if options.stdin:
            parser.error("--stdin goes with one VM")
        return _run_all(options, line)
    vm = words[0]
    stdin = sys.stdin.buffer.read() if options.stdin else b""
    if options.queue:
        from remote_tasks import client

        result = client.execute_on_vm(
            vm,
            line,
            stdin=stdin.decode("utf-8", "surrogateescape"),
            command_timeout=options.timeout,
        )
        if not options.json:
            _print_output(result)
    else:
        result = actions.run_on(
            vm,
            line,
            stdin=stdin,
            timeout=options.timeout,
            on_output=None if options.json else _print_line,
        )
    if options.json:
        _print_json(result)
    return int(result["exit_code"])


def _run_all(options: argparse.Namespace, line: str | list[str]) -> int:
    if options.queue:
        from remote_tasks import client

        results = client.execute_on_all_vms(line)
        if not options.json:
            for vm, result in results.items():
                for key, stream in (("output", "stdout"), ("error", "stderr")):
                    for text in result[key].splitlines():
                        _print_prefixed(vm, stream, text)
    else:
        results = actions.run_on_all(
            line, timeout=options.timeout, on_output=None if options.json else _print_prefixed
        )
    if options.json:
        _print_json(results)
    else:
        for vm, result in results.items():
            if result["exit_code"] == -1 and not options.queue:
                _print_prefixed(vm, "stderr", result["error"])
            elif not result["success"]:
                _print_prefixed(vm, "stderr", f"exit code {result['exit_code']}")
    return 0 if all(result["success"] for result in results.values()) else EXIT_FAILED


def _print_line(stream: str, line: str) -> None:
    print(line, file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)


def _print_prefixed(vm: str, stream: str, line: str) -> None:
    _print_line(stream, f"{vm} | {line}")


def _print_output(result: dict[str, Any]) -> None:
    if result["output"]:
        print(result["output"])
    if result["error"]:
        print(result["error"], file=sys.stderr)


def _status(options: argparse.Namespace) -> int:
    targets = load_targets()
    chosen = [targets.get(name) for name in options.vms] or list(targets)
    answers = actions.check_vms(chosen, targets)
    if options.json:
        _print_json(answers)
    else:
        _print_table(
            ("VM", "STATUS", "HOSTNAME", "UP", "LOAD", "MEMORY FREE", "DISK FREE"),
            [_status_row(name, answer) for name, answer in answers.items()],
        )
        for name, answer in answers.items():
            for check, result in answer["checks"].items():
                if not result["success"]:
                    print(f"{name}: {check}: {result['error']}", file=sys.stderr)
                    if result["exit_code"] == -1:
                        break  # it is down: once is enough
    return 0 if all(answer["overall_status"] for answer in answers.values()) else EXIT_FAILED


def _status_row(name: str, answer: dict[str, Any]) -> tuple[str, ...]:
    numbers = answer["numbers"]

    def show(text: str) -> str:
        try:
            return text.format(**numbers)
        except KeyError:
            return "-"

    days, rest = divmod(int(numbers.get("uptime_seconds", 0)), 86400)
    up = f"{days}d {rest // 3600:02}:{rest % 3600 // 60:02}" if numbers else "-"
    return (
        name,
        "ok" if answer["overall_status"] else "FAILED",
        answer["checks"]["hostname"]["output"] or "-",
        up,
        show("{load_1min:.2f} on {cpus}"),
        show("{memory_available_mib} of {memory_total_mib} MiB"),
        show("{disk_free_gib} of {disk_total_gib} GiB"),
    )


def _queues(options: argparse.Namespace) -> int:
    from remote_tasks import client, dags

    names = options.queues or dags.consumed_queues(load_targets(), dags.default_queue())
    states = client.queue_states(names)
    if options.json:
        _print_json({name: state and asdict(state) for name, state in states.items()})
    else:
        _print_table(
            ("QUEUE", "WAITING", "CONSUMERS"),
            [
                (name, str(state.waiting), str(state.consumers)) if state else (name, "-", "NONE")
                for name, state in states.items()
            ],
        )
    missing = [name for name, state in states.items() if state is None]
    if missing:
        print(f"remote-tasks: the broker has no queue {', '.join(missing)}", file=sys.stderr)
    return EXIT_FAILED if missing else 0


def _copy(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    source_vm, source_path = _vm_and_path(options.source, parser)
    dest_vm, dest_path = _vm_and_path(options.dest, parser)
    if options.queue:
        from remote_tasks import client

        result = client.file_transfer(
            source_vm, dest_vm, source_path, dest_path, timeout=options.timeout
        )
        if not result["success"] and not options.json:
            raise TransferError(result["error"])
    else:
        result = actions.send_file(
            source_vm, dest_vm, source_path, dest_path, timeout=options.timeout
        )
    if options.json:
        _print_json(result)
    else:
        print(f"{result['dest_vm']}:{result['dest_path']}: {result['output']}")
    return 0 if result["success"] else EXIT_FAILED


def _vm_and_path(text: str, parser: argparse.ArgumentParser) -> tuple[str, str]:
    vm, colon, path = text.partition(":")
    if not (vm and colon and path):
        parser.error(f"{text!r} is not VM:PATH")
    return vm, path


def _check_dags(options: argparse.Namespace, tail: list[str]) -> int:
    from remote_tasks import dags

    targets = load_targets()
    parsed = dags.read_dags([*options.paths, *tail])
    queues = dags.consumed_queues(targets, parsed.default_queue)
    stuck = dags.without_consumer(parsed.tasks, queues)
    success = not stuck and not parsed.failures
    if options.json:
        _print_json(
            {
                "success": success,
                "dags": parsed.dags,
                "tasks": len(parsed.tasks),
                "queues": queues,
                "without_consumer": [asdict(task) for task in stuck],
                "import_errors": [asdict(failure) for failure in parsed.failures],
            }
        )
        return 0 if success else EXIT_FAILED
    for failure in parsed.failures:
        print(f"{failure.file}: cannot be imported: {failure.error}")
    for task in stuck:
        print(
            f"{task.file}: {task.dag}.{task.task}: queue {task.queue!r} has no consumer. "
            f"Queues are: {', '.join(queues)}"
        )
    if success:
        counts = f"DAGs: {parsed.dags}, tasks: {len(parsed.tasks)}"
        print(f"{counts}; every queue that they name has a consumer")
    return 0 if success else EXIT_FAILED


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
