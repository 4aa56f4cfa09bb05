"""What can go wrong, as types.

Every message names the VM with host, port and user, the cause, and what to do. Every class can be
built from the message alone: Celery rebuilds exceptions from their arguments on the other side.
"""

from __future__ import annotations


class RemoteTasksError(Exception):
    """The parent of all errors of this package."""


class TargetsFileError(RemoteTasksError, ValueError):
    """The targets file is missing, unreadable or wrong."""


class UnknownTargetError(RemoteTasksError, ValueError):
    """A VM was named that is not in the targets file."""


class CommandError(RemoteTasksError, ValueError):
    """A command, argument, variable or path that no shell could be given."""


class DagCheckError(RemoteTasksError):
    """DAGs cannot be checked: Airflow does not start, or a path is wrong."""


class TransportError(RemoteTasksError):
    """The command could not be carried out; its own failure is a result and never this.

    Attributes:
        retryable: Whether trying the same again later may help and can do no harm: nothing of the
            command has run.
    """

    retryable = False


class NotReachableFromHereError(TransportError):
    """The target is known, but this host has no way to it."""


class ConnectError(TransportError):
    """No connection: refused, unreachable, timed out, or dropped before the command was sent."""

    retryable = True


class HostKeyError(TransportError):
    """The VM's host key is not the pinned one."""


class AuthenticationError(TransportError):
    """The VM refused the key, the key cannot be used, or sudo refused the login."""


class CommandNotStartedError(TransportError):
    """The login on the VM worked, but no POSIX shell came up there."""


class ConnectionLostError(TransportError):
    """The connection broke while the command was running, so it may have had effects."""


class CommandTimeoutError(TransportError):
    """The command ran longer than allowed and was killed."""


class TransferError(RemoteTasksError):
    """A file transfer failed; nothing stands under the final name that was not there before."""


class SourceError(TransferError):
    """The source is missing, unreadable, or not a regular file."""


class SourceChangedError(TransferError):
    """The source was written to while it was being read."""


class DestinationError(TransferError):
    """The destination's directory is missing or not writable, or the final name is not a file."""


class NoSpaceError(DestinationError):
    """The destination's file system has no room for the file."""


class SameFileError(TransferError):
    """Source and destination are one and the same file."""


class IntegrityError(TransferError):
    """What arrived is not what was sent, by size or sha256."""


class QueueError(RemoteTasksError):
    """The broker could not be reached, or has no such queue."""


class ResultTimeoutError(RemoteTasksError, TimeoutError):
    """No result came back in time."""


class RemoteTaskFailedError(RemoteTasksError):
    """The task ended with an error on the worker that this side has no type for."""
