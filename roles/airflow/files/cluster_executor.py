"""Airflow's executor for Celery, with a scheduler that is woken when there is something to do.

Airflow's scheduler learns of a trigger and of a task's end by looking into the metadata database, again and again, with
a sleep between. Here the database says so itself, by ``NOTIFY``, at the moment at which the change can be seen; the
scheduler waits for that where it would sleep. What is not said (that it is time for a scheduled run or for another try,
say) it finds by looking, as before. So does a scheduler that cannot listen. See docs/decisions/0014.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
from airflow import settings
from airflow.configuration import conf
from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from airflow.utils.state import TaskInstanceState
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)

#: Seconds after which a scheduler that was woken looks once more: Celery tells of a task's end, which gives back its
#: slot, a little after Airflow does.
LOOK_AGAIN = 0.25

#: Seconds that the scheduler waits at most while tasks run: Celery tells of an end after Airflow, and of a hundred runs
#: that go on the scheduler looks at twenty at a time.
WHILE_TASKS_RUN = 1.0

#: Seconds of silence after which the system asks whether the database is still there, and between two tries, of three.
KEEPALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}

# What the scheduler itself does with a task wakes nobody. The tables are Airflow's: neither triggers nor function
# depend on the columns that these have, so that no migration is kept from changing them, or fails by them.
FUNCTION = """
CREATE OR REPLACE FUNCTION notify_scheduler() RETURNS trigger LANGUAGE plpgsql AS $function$
DECLARE
  former text := to_jsonb(OLD) ->> 'state';
  present text := to_jsonb(NEW) ->> 'state';
BEGIN
  IF TG_OP = 'INSERT' OR present IS DISTINCT FROM former AND (
    coalesce(present, '') NOT IN ('scheduled', 'queued', 'running')
    OR present = 'scheduled' AND former IN ('deferred', 'awaiting_input', 'running')
  ) THEN
    PERFORM pg_notify('airflow_scheduler', '');
  END IF;
  RETURN NULL;
END
$function$
"""
TRIGGERS = {"dag_run": "INSERT OR UPDATE", "task_instance": "UPDATE"}
HAS_TRIGGER = "SELECT FROM pg_trigger WHERE tgrelid = %s::regclass AND tgname = 'notify_scheduler'"
TRIGGER = "CREATE TRIGGER notify_scheduler AFTER {} ON {} FOR EACH ROW EXECUTE FUNCTION notify_scheduler()"


def connect() -> psycopg.Connection[Any]:
    """Open a connection to the metadata database that belongs to the caller alone.

    Raises:
        psycopg.Error: There is none to be had.
        sqlalchemy.exc.SQLAlchemyError: Likewise.
    """
    pooled = settings.get_engine().raw_connection()
    connection: psycopg.Connection[Any] = pooled.driver_connection
    pooled.detach()
    connection.autocommit = True
    with socket.socket(fileno=os.dup(connection.fileno())) as transport:
        if transport.family != socket.AF_UNIX:
            for option, value in KEEPALIVE.items():
                transport.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection


@dataclasses.dataclass
class Bell:
    """What the metadata database says to those who listen.

    Attributes:
        connect: Opens a connection.
    """

    connect: Callable[[], psycopg.Connection[Any]] = connect
    _connection: psycopg.Connection[Any] | None = dataclasses.field(default=None, init=False)

    def listen(self) -> psycopg.Connection[Any]:
        """Have the database say something from now on.

        Raises:
            psycopg.Error: It does not let us.
            sqlalchemy.exc.SQLAlchemyError: It cannot be reached.
        """
        if self._connection is None:
            connection = self.connect()
            try:
                # Behind somebody who writes for long, all who write after us would wait as well.
                connection.execute("SET lock_timeout = '1s'")
                connection.execute(FUNCTION)
                for table, events in TRIGGERS.items():
                    if connection.execute(HAS_TRIGGER, [table]).fetchone() is None:
                        connection.execute(TRIGGER.format(events, table))
                connection.execute("LISTEN airflow_scheduler")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def wait(self, seconds: float) -> bool:
        """Wait until the database says something.

        Args:
            seconds: How long, at most.

        Returns:
            Whether it did, since the last time that somebody waited. Not when it cannot be heard: the time passes then.
        """
        began = time.monotonic()
        try:
            return any(list(self.listen().notifies(timeout=seconds, stop_after=1)))
        except (psycopg.Error, SQLAlchemyError) as error:
            log.warning("Not woken by the metadata database, so looking each %s s instead: %s", seconds, error)
            self._forget()
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            return False

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def rest(*, sent: int, running: int, states: Iterable[TaskInstanceState], look_again: bool, longest: float) -> float:
    """Return how long the scheduler may wait before it looks again.

    Args:
        sent: Tasks that were sent to workers after its last look: there may be more.
        running: Tasks that have not ended.
        states: What it has not heard yet of tasks.
        look_again: Whether its last look came of something that the database said.
        longest: Seconds, when there is nothing to do.

    Returns:
        Seconds; 0 when it is to look at once.
    """
    if sent or any(state not in {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING} for state in states):
        return 0.0
    if look_again:
        return min(LOOK_AGAIN, longest)
    return min(WHILE_TASKS_RUN, longest) if running else longest


class ClusterExecutor(CeleryExecutor):  # type: ignore[misc]
    """Runs tasks by Celery, and gives the scheduler its rest."""

    def start(self) -> None:
        """Begin; the scheduler calls this once."""
        super().start()
        # Celery keeps its connection to the results in processes that it has forked, and makes a new one for each look
        # in others.
        results = self.celery_app.backend
        results.session_manager.forked = True
        results.engine_options.setdefault("pool_pre_ping", True)
        self._bell = Bell()
        self._look_again = False
        # The scheduler's own signs of life come between two looks.
        self._longest = min(
            conf.getfloat("cluster", "scheduler_wait"), conf.getfloat("scheduler", "scheduler_heartbeat_sec")
        )

    def heartbeat(self) -> None:
        """Send what is queued and see what has ended, then wait for a reason to look again.

        The scheduler calls this each time that it has looked.
        """
        waiting = self._waiting()
        super().heartbeat()
        seconds = rest(
            sent=waiting - self._waiting(),
            running=len(self.running),
            states=[state for state, _ in self.event_buffer.values()],
            look_again=self._look_again,
            longest=self._longest,
        )
        if seconds:
            self._look_again = self._bell.wait(seconds)

    def _waiting(self) -> int:
        return len(self.queued_tasks) + len(self.queued_callbacks)
