r"""The direct way of a result from a worker to the caller.

The caller has a queue of its own, bound to one exchange that all direct replies go through. An
exchange of their own, not the broker's default one, because whoever may write to the default
exchange may write to every queue: a VM's login at the broker is to have no such right. It needs
``write`` on ``^remote_tasks\.reply$`` and nothing else.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu import Exchange

from remote_tasks import errors

log = logging.getLogger(__name__)

REPLY_EXCHANGE = "remote_tasks.reply"
REPLY_QUEUE_PREFIX = "remote_tasks.reply."


def reply_exchange() -> Exchange:
    """Return the exchange as the caller declares it.

    Returns:
        A durable direct exchange.
    """
    return Exchange(REPLY_EXCHANGE, type="direct", durable=True)


def is_direct(reply_to: str | None) -> bool:
    """Tell whether a caller waits for a direct reply.

    Args:
        reply_to: The queue's name in the task's message; Celery always fills one in.

    Returns:
        Whether it is one of ours.
    """
    return bool(reply_to) and str(reply_to).startswith(REPLY_QUEUE_PREFIX)


def pack(outcome: object) -> dict[str, Any]:
    """Make the body of a reply.

    Args:
        outcome: What the task returned, or the exception that it ended with.

    Returns:
        ``result``, or ``error`` with ``type`` and ``message``.
    """
    if isinstance(outcome, BaseException):
        return {"error": {"type": type(outcome).__name__, "message": str(outcome)}}
    return {"result": outcome}


def unpack(body: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the task returns
    """Take a reply apart.

    Args:
        body: What `pack` made.

    Returns:
        What the task returned.

    Raises:
        RemoteTasksError: What it ended with, as the same type when it is one of this package's.
    """
    failure = body.get("error")
    if failure is None:
        return body["result"]
    kind = getattr(errors, str(failure["type"]), None)
    if isinstance(kind, type) and issubclass(kind, errors.RemoteTasksError):
        raise kind(failure["message"])
    raise errors.RemoteTaskFailedError(f"{failure['type']}: {failure['message']}")


def reply(app: Any, reply_to: str, task_id: str, outcome: object) -> None:  # noqa: ANN401 - Celery
    """Send a reply from a worker; a caller that is gone is no error of the task.

    Args:
        app: The worker's Celery application.
        reply_to: The caller's queue.
        task_id: What it asked for.
        outcome: What the task returned, or its exception.
    """
    try:
        with app.amqp.producer_pool.acquire(block=True) as producer:
            producer.publish(
                pack(outcome),
                exchange=REPLY_EXCHANGE,
                routing_key=reply_to,
                correlation_id=task_id,
                serializer="json",
                delivery_mode=1,
                retry=True,
                retry_policy={"max_retries": 3, "interval_start": 0.2, "interval_step": 0.5},
            )
    except Exception:
        log.exception("The reply to task %s could not be sent to %s", task_id, reply_to)
