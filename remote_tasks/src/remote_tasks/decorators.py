"""The TaskFlow decorator ``@task.remote``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)

from remote_tasks.operators import RemoteCommandOperator, queue_of_vm

if TYPE_CHECKING:
    from airflow.sdk import Context


class _RemoteDecoratedOperator(DecoratedOperator, RemoteCommandOperator):
    """Runs what the decorated function returns."""

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *RemoteCommandOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **RemoteCommandOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.remote"
    # The command is known only now; the UI is to show it.
    overwrite_rtif_after_execution = True

    def __init__(
        self,
        *,
        python_callable: Callable[..., str | Sequence[str]],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 - handed on to the operator
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            command="",
            **kwargs,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        values: dict[str, Any] = {**context, **self.op_kwargs}
        kwargs = determine_kwargs(self.python_callable, self.op_args, values)
        command = self.python_callable(*self.op_args, **kwargs)
        if isinstance(command, tuple):
            command = list(command)
        if not isinstance(command, str | list) or not command:
            raise TypeError(
                f"@task.remote: {self.python_callable.__name__} must return a command line or a "
                f"list of arguments, got {command!r:.100}."
            )
        # Not rendered again: what came from another task is data, whatever braces are in it.
        self.command = command
        result: dict[str, Any] = super().execute(context)
        return result


def remote_task(
    python_callable: Callable[..., str | Sequence[str]] | None = None,
    *,
    vm: str,
    **kwargs: Any,  # noqa: ANN401 - handed on to the operator
) -> TaskDecorator:
    """Make a function that returns a command into a task that runs it on a VM.

    Args:
        python_callable: The function; it returns a shell command line or a list of arguments.
        vm: The VM's name. The task goes to its queue.
        kwargs: What `RemoteCommandOperator` takes.

    Returns:
        The decorator.

    Raises:
        UnknownTargetError: The DAG names a VM that is not in the targets file.
    """
    # Here, because a mapped task's __init__ runs too late for it.
    kwargs.setdefault("queue", queue_of_vm(vm))
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=_RemoteDecoratedOperator,
        vm=vm,
        **kwargs,
    )
