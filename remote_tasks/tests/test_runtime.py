from __future__ import annotations

import os
import time

import pytest

from conftest import SETTINGS, Sshd, run
from remote_tasks import runtime
from remote_tasks.errors import NotReachableFromHereError
from remote_tasks.targets import Target


def in_child(work: object) -> int:
    """Run in a forked process, as Celery's pool and Airflow's supervisor do."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_a_child_makes_its_own_connections_and_the_parents_live_on(
    sshd3: Sshd, here: Target
) -> None:
    target = sshd3.target("fork")
    run(target, "true")
    mine = runtime.get_runtime()
    before = set(sshd3.sessions())

    def work() -> None:
        assert run(target, "echo child").stdout == "child\n"
        assert run(here, "echo child").stdout == "child\n"
        assert runtime.get_runtime() is not mine

    for _ in range(2):
        assert in_child(work) == 0
    assert run(target, "echo parent").stdout == "parent\n"
    assert before <= set(sshd3.sessions())
    assert runtime.get_runtime() is mine


def test_the_transport_of_a_target_is_made_once(vm2: Target) -> None:
    current = runtime.get_runtime()

    async def both() -> bool:
        first = current.transport(vm2, SETTINGS)
        return first is current.transport(vm2, SETTINGS)

    assert current.call(both())


def test_a_target_that_only_a_queue_leads_to() -> None:
    target = Target(name="vm3", transport="none", host="192.0.2.3", queue="vm3_queue")
    with pytest.raises(NotReachableFromHereError, match="Send the task to the queue 'vm3_queue'"):
        run(target, "true")


def test_the_thread_of_the_caller_gets_the_output(here: Target) -> None:
    import threading

    seen: list[int] = []
    run(here, "echo x", on_output=lambda stream, line: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()]
