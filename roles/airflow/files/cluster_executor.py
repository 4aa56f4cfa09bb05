"""Airflow's executor for Celery, with a scheduler that is woken when there is something to do.

Airflow's scheduler learns of a trigger and of a task's end by looking into the metadata database, again and again, with
a sleep between. Here the database says so itself, by ``NOTIFY``, at the moment at which the change can be seen; the
scheduler waits for that where it would sleep. What is not said (that it is time for a scheduled run or for another try,
say) it finds by looking, as before. So does a scheduler that cannot listen. See docs/decisions/0014.
"""

from __future__ import annotations

import dataclasses
import logging
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

# What the scheduler itself does with a task wakes nobody. The tables' names are Airflow's; a condition of the triggers'
# own (WHEN, OF) would keep a migration from changing the columns that it names.
SET_UP = """
DO $set_up$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('airflow_scheduler'));
  CREATE OR REPLACE FUNCTION notify_scheduler() RETURNS trigger LANGUAGE plpgsql AS $function$
  BEGIN
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state AND (
      OLD.state = 'deferred' OR NEW.state IS NULL OR NEW.state NOT IN ('scheduled', 'queued', 'running')
    ) THEN
      PERFORM pg_notify('airflow_scheduler', '');
    END IF;
    RETURN NULL;
  END
  $function$;
  IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'dag_run'::regclass AND tgname = 'notify_scheduler') THEN
    CREATE TRIGGER notify_scheduler AFTER INSERT OR UPDATE ON dag_run
      FOR EACH ROW EXECUTE FUNCTION notify_scheduler();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'task_instance'::regclass AND tgname = 'notify_scheduler') THEN
    CREATE TRIGGER notify_scheduler AFTER UPDATE ON task_instance
      FOR EACH ROW EXECUTE FUNCTION notify_scheduler();
  END IF;
END
$set_up$
"""


def connect() -> psycopg.Connection[Any]:
    """Open a connection to the metadata database that belongs to the caller alone.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: There is none to be had.
    """
    pooled = settings.get_engine().raw_connection()
    connection: psycopg.Connection[Any] = pooled.driver_connection
    pooled.detach()
    connection.autocommit = True
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
            connection.execute(SET_UP)
            connection.execute("LISTEN airflow_scheduler")
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


def ended(events: Iterable[tuple[Any, Any]]) -> bool:
    """Tell whether one of an executor's events says that a task has ended, for which the scheduler is not to wait.

    Args:
        events: State and what else is known, of each.
    """
    return any(state not in {TaskInstanceState.QUEUED, TaskInstanceState.RUNNING} for state, _ in events)


class ClusterExecutor(CeleryExecutor):  # type: ignore[misc]
    """Runs tasks by Celery, and gives the scheduler its rest."""

    def start(self) -> None:
        """Begin; the scheduler calls this once."""
        super().start()
        # Celery keeps its connection to the results in processes that it has forked, and makes a new one for each look
        # in others.
        self.celery_app.backend.session_manager.forked = True
        self._bell = Bell()
        self._look_again = False
        self._longest_wait = conf.getfloat("cluster", "scheduler_wait")
        #: As many as the scheduler queues at a time; 0 is no limit.
        self._batch = conf.getint("scheduler", "max_tis_per_query")

    def heartbeat(self) -> None:
        """Send what is queued and see what has ended, then wait for a reason to look again.

        The scheduler calls this each time that it has looked.
        """
        waiting = len(self.queued_tasks) + len(self.queued_callbacks)
        super().heartbeat()
        more_to_queue = 0 < self._batch <= waiting
        if more_to_queue or ended(self.event_buffer.values()):
            return
        self._look_again = self._bell.wait(LOOK_AGAIN if self._look_again else self._longest_wait)
