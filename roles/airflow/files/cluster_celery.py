"""Celery's settings, for Airflow's ``[celery] celery_config_options``: Airflow's own, and what least privilege needs.

On a host that is nothing but a target VM, the worker's user of the broker may take the VM's tasks and say how it is.
It may not declare queues or exchanges, nor write to those of tasks, nor command other workers. So the queues are
given (the role ``rabbitmq`` declares them), and events, commands and answers go by the exchanges ``amq.*``, which
every virtual host has and nobody can remove, where Celery's own would have to be declared by all.
"""

from __future__ import annotations

from typing import Any

from airflow.configuration import conf
from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG
from celery import Celery
from celery.app import control
from celery.worker import consumer
from kombu import Exchange, Queue

#: The queues that this host's workers must not declare; none on hosts whose user of the broker may.
GIVEN_QUEUES = [name for name in conf.get("cluster", "given_queues", fallback="").split(",") if name]


class Mailbox(control.Mailbox):  # type: ignore[misc]
    """Commands to workers, and their answers."""

    def _get_exchange(self, namespace: str, type: str) -> Exchange:
        return Exchange("amq.fanout", type="fanout", delivery_mode="transient")

    def _get_reply_exchange(self, namespace: str) -> Exchange:
        return Exchange("amq.direct", type="direct", delivery_mode="transient")


class Control(control.Control):  # type: ignore[misc]
    """Commands workers, where the user of the broker may."""

    Mailbox = Mailbox

    def broadcast(self, *args: Any, **options: Any) -> Any:
        """Send a command; elsewhere nobody is asked, and nobody answers.

        Airflow asks for a worker of the same name before it starts one. Names of units see to that here.
        """
        return None if GIVEN_QUEUES else super().broadcast(*args, **options)


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """A worker's consumer, without exchanges and queues for delayed tasks, and without a wait for who hears its events.

    Nothing here delays a task by Celery, and the set-up for it cannot work for direct exchanges anyway.
    """

    class Blueprint(consumer.Consumer.Blueprint):  # type: ignore[misc]
        """Its steps."""

        default_steps = tuple(
            step for step in consumer.Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        )

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Connect for the worker's events alone; it is what Celery's own class calls this for.

        The broker does not confirm these: the worker would do nothing else until it has, for each of them.

        Args:
            url: The broker, where it is not the application's.
            heartbeat: Seconds between two signs of life.

        Returns:
            The connection.
        """
        connection = self.app.connection_for_write(url=url, heartbeat=heartbeat)
        connection.transport_options = {**connection.transport_options, "confirm_publish": False}
        return self.ensure_connected(connection)


def given(name: str) -> Queue:
    """Describe a queue that is there already.

    Args:
        name: Its name, and its exchange's.

    Returns:
        The queue. By its type, Celery knows that the broker counts what a worker has taken consumer by consumer.
    """
    exchange = Exchange(name, no_declare=True)
    return Queue(name, exchange, name, no_declare=True, queue_arguments={"x-queue-type": "quorum"})


CONFIG: dict[str, Any] = {
    **DEFAULT_CELERY_CONFIG,
    "event_exchange": "amq.topic",
    "worker_consumer": f"{__name__}:Consumer",
}
if GIVEN_QUEUES:
    CONFIG |= {"task_queues": [given(name) for name in GIVEN_QUEUES], "task_create_missing_queues": False}

# Airflow makes the application, and Celery has no setting for this.
Celery.control_cls = f"{__name__}:Control"
