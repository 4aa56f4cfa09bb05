"""Call the Celery tasks from a script and get the result in milliseconds.

::

    import remote_tasks
    print(remote_tasks.execute_on_vm("vm2", "hostname")["output"])

The call travels through the VM's queue and its worker. The first one in a process reads Airflow's
configuration and connects; those after it take milliseconds. Safe to use from several threads; each
process gets its own connections.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu import Connection, Consumer, Message, Producer, Queue

from remote_tasks.errors import QueueError, RemoteTasksError, ResultTimeoutError
from remote_tasks.replies import REPLY_QUEUE_PREFIX, reply_exchange, unpack
from remote_tasks.targets import ALL_VMS_QUEUE, FILE_TRANSFER_QUEUE, queue_for

BROKER_VARIABLE = "REMOTE_TASKS_BROKER_URL"

_CONNECT_TIMEOUT = 10.0


def broker_settings() -> dict[str, Any]:
    """Find the broker.

    Returns:
        Celery settings: ``REMOTE_TASKS_BROKER_URL`` when it is set, else what Airflow's
        configuration says, commands that print a secret included.

    Raises:
        QueueError: Neither says anything.
    """
    if url := os.environ.get(BROKER_VARIABLE):
        return {"broker_url": url}
    try:
        from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
    except Exception as error:
        raise QueueError(
            f"Airflow's Celery configuration cannot be read: {error}. Run this as a user who may "
            f"read it, or set {BROKER_VARIABLE}."
        ) from error
    keys = ("broker_url", "broker_use_ssl", "broker_transport_options")
    found = {key: DEFAULT_CELERY_CONFIG[key] for key in keys if key in DEFAULT_CELERY_CONFIG}
    # Airflow keeps the newline that a broker_url_cmd prints.
    found["broker_url"] = found["broker_url"].strip()
    return found


def _connect(app: Celery) -> Connection:
    connection = app.connection_for_write(
        connect_timeout=_CONNECT_TIMEOUT,
        transport_options={**app.conf.broker_transport_options, "confirm_publish": True},
    )
    try:
        return connection.ensure_connection(max_retries=1, interval_start=0.5)
    except Exception as error:
        raise QueueError(
            f"{connection.as_uri()}: the broker cannot be reached: {error}. Is it running?"
        ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class QueueState:
    """A queue, at the moment of asking.

    Attributes:
        waiting: Messages that no worker has taken.
        consumers: Workers that take messages from it, or took some that they still work on.
    """

    waiting: int
    consumers: int


def queue_states(
    names: Iterable[str], settings: Mapping[str, Any] | None = None
) -> dict[str, QueueState | None]:
    """Ask the broker's queues themselves, without taking anything from them.

    What RabbitMQ's management API and ``rabbitmqctl list_queues`` say of a quorum queue is up to
    five seconds old: after that time only, a message that was just sent is among them.

    Args:
        names: The queues.
        settings: As for `QueueClient`.

    Returns:
        Name to state; ``None`` for a queue that does not exist.

    Raises:
        QueueError: The broker cannot be reached, or does not let us ask.
    """
    app = Celery("remote_tasks", config_source=dict(settings or broker_settings()))
    states: dict[str, QueueState | None] = {}
    with _connect(app) as connection:
        for name in names:
            try:
                said = connection.default_channel.queue_declare(name, passive=True)
                states[name] = QueueState(said.message_count, said.consumer_count)
            except NotFound:
                states[name] = None  # the broker closes the channel, and kombu opens another
            except Exception as error:
                raise QueueError(f"{connection.as_uri()}: queue {name!r}: {error}") from error
    return states


class QueueClient:
    """A connection to the broker for calls and one for their results.

    Args:
        settings: Celery settings with ``broker_url``; by default as `broker_settings` finds them.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self._app = Celery("remote_tasks", config_source=dict(settings or broker_settings()))
        self._queue = f"{REPLY_QUEUE_PREFIX}{uuid.uuid4()}"
        self._pending: dict[str, concurrent.futures.Future[Any]] = {}
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._out = _connect(self._app)
        self._in = _connect(self._app)
        try:
            # Not mistaken for a lost task: a queue that does not exist is an error at once.
            self._producer = Producer(self._out.channel(), serializer="json", auto_declare=False)
            consumer = Consumer(
                self._in.channel(),
                [
                    Queue(
                        self._queue,
                        reply_exchange(),
                        routing_key=self._queue,
                        durable=False,
                        exclusive=True,
                        auto_delete=True,
                    )
                ],
                callbacks=[self._received],
                accept=["json"],
                no_ack=True,
            )
            consumer.consume()
        except Exception as error:
            self.close()
            raise QueueError(f"{self._in.as_uri()}: no reply queue: {error}") from error
        threading.Thread(target=self._listen, name="remote-tasks-replies", daemon=True).start()

    @property
    def usable(self) -> bool:
        """Whether calls can be made."""
        return not self._closed.is_set()

    def submit(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str,
        expires: float | None = None,
    ) -> concurrent.futures.Future[Any]:
        """Send a call.

        Args:
            task: The task's name.
            args: Its arguments.
            kwargs: Its keyword arguments.
            queue: The queue whose worker is to do it.
            expires: Seconds after which a worker that has not begun it drops it.

        Returns:
            The result to be; collect any number in any order.

        Raises:
            QueueError: The broker is gone, or has no such queue.
        """
        task_id = str(uuid.uuid4())
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        message = self._app.amqp.as_task_v2(
            task_id,
            task,
            args=list(args),
            kwargs=dict(kwargs or {}),
            reply_to=self._queue,
            expires=expires,
            ignore_result=True,  # on the worker: do not write it to the database
        )
        self._pending[task_id] = future
        try:
            with self._sending:
                self._producer.publish(
                    message.body,
                    exchange="",
                    routing_key=queue,
                    headers=message.headers,
                    mandatory=True,
                    delivery_mode=2,
                    **message.properties,
                )
        except Exception as error:
            self._pending.pop(task_id, None)
            if getattr(error, "reply_code", None) == 312:
                raise QueueError(
                    f"The broker has no queue {queue!r}: no worker has ever served it. "
                    "Is the VM's name right, and did the playbook run?"
                ) from error
            self.close(error)
            raise QueueError(
                f"{self._out.as_uri()}: the call could not be sent: {error}"
            ) from error
        return future

    def call(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        queue: str,
        timeout: float | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the task returns
        """Send a call and wait for its result.

        Args:
            task: The task's name.
            args: Its arguments.
            kwargs: Its keyword arguments.
            queue: The queue whose worker is to do it.
            timeout: Seconds to wait; ``None`` for as long as it takes. A worker that comes to it
                later drops it.

        Returns:
            What the task returned.

        Raises:
            RemoteTasksError: What the task ended with.
            ResultTimeoutError: No result in time.
            QueueError: The broker is gone, or has no such queue.
        """
        future = self.submit(task, args, kwargs, queue=queue, expires=timeout)
        try:
            return future.result(timeout)
        except TimeoutError as error:
            if isinstance(error, RemoteTasksError):
                raise
            raise ResultTimeoutError(
                f"No result of {task} from the queue {queue!r} within {timeout:g} s. Is its worker "
                "running, and has it a free slot?"
            ) from None

    def _received(self, body: dict[str, Any], message: Message) -> None:
        future = self._pending.pop(message.properties.get("correlation_id", ""), None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(unpack(body))
        except Exception as error:
            future.set_exception(error)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._in.drain_events(timeout=1.0)
            except TimeoutError:
                with contextlib.suppress(NotImplementedError):
                    self._in.heartbeat_check()
            except Exception as error:
                self.close(error)

    def close(self, cause: BaseException | None = None) -> None:
        """Close the connections; who still waits for a result gets an error.

        Args:
            cause: Why.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        pending, self._pending = self._pending, {}
        for future in pending.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(
                    QueueError(
                        f"The connection to the broker was lost ({cause}) while waiting for the "
                        "result; the task may have run."
                    )
                )
        for connection in (self._out, getattr(self, "_in", None)):
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.collect()


_client: QueueClient | None = None
_lock = threading.Lock()


def get_client() -> QueueClient:
    """Return this process's client.

    Returns:
        The client, connected anew when the last connection broke.

    Raises:
        QueueError: The broker cannot be reached.
    """
    global _client
    with _lock:
        if _client is None or not _client.usable:
            _client = QueueClient()
        return _client


def _forget_after_fork() -> None:
    global _client, _lock
    _lock = threading.Lock()
    _client = None


os.register_at_fork(after_in_child=_forget_after_fork)


def execute_on_vm(
    vm_name: str,
    command: str | Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    command_timeout: float | None = None,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Run a command on a VM through its queue.

    Args:
        vm_name: The VM.
        command: A shell command line, or arguments.
        cwd: The directory to run in.
        env: Variables to set.
        stdin: Its standard input.
        command_timeout: Seconds it may run; by default as the targets file says.
        timeout: Seconds to wait for the result, the time in the queue included.

    Returns:
        ``host``, ``command``, ``exit_code``, ``output``, ``error``, ``success``, ``timestamp`` ...

    Raises:
        RemoteTasksError: The VM is unknown, could not be reached, or the result did not come.
    """
    options = {"cwd": cwd, "env": env, "stdin": stdin, "timeout": command_timeout}
    result: dict[str, Any] = get_client().call(
        "remote_tasks.execute_on_vm",
        [vm_name, command if isinstance(command, str) else list(command)],
        {key: value for key, value in options.items() if value},
        queue=queue_for(vm_name),
        timeout=timeout,
    )
    return result


def execute_on_all_vms(
    command: str | Sequence[str], *, timeout: float | None = None
) -> dict[str, dict[str, Any]]:
    """Run a command on all VMs at once, through the general worker.

    Args:
        command: A shell command line, or arguments.
        timeout: Seconds to wait for the results.

    Returns:
        A result for each VM.

    Raises:
        RemoteTasksError: The result did not come.
    """
    result: dict[str, dict[str, Any]] = get_client().call(
        "remote_tasks.execute_on_all_vms",
        [command if isinstance(command, str) else list(command)],
        queue=ALL_VMS_QUEUE,
        timeout=timeout,
    )
    return result


def file_transfer(
    source_vm: str,
    dest_vm: str,
    source_path: str,
    dest_path: str,
    *,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Send a file or a directory from one VM to another, through the general worker.

    Args:
        source_vm: The VM that has it.
        dest_vm: The VM that gets it.
        source_path: The file or directory.
        dest_path: Its new name, or a directory.
        timeout: Seconds to wait for the result.

    Returns:
        ``success``, ``output``, ``error``, ``size`` ...

    Raises:
        RemoteTasksError: A VM is unknown or could not be reached, or the result did not come.
    """
    result: dict[str, Any] = get_client().call(
        "remote_tasks.file_transfer",
        [source_vm, dest_vm, source_path, dest_path],
        queue=FILE_TRANSFER_QUEUE,
        timeout=timeout,
    )
    return result


def check_vm_status(vm_name: str, *, timeout: float | None = None) -> dict[str, Any]:
    """Ask a VM how it is, through its queue.

    Args:
        vm_name: The VM.
        timeout: Seconds to wait for the result.

    Returns:
        ``vm_name``, ``host``, ``checks``, ``numbers`` and ``overall_status``.

    Raises:
        RemoteTasksError: The VM is unknown, or the result did not come.
    """
    result: dict[str, Any] = get_client().call(
        "remote_tasks.check_vm_status", [vm_name], queue=queue_for(vm_name), timeout=timeout
    )
    return result
