"""Ansible callback: Python collects cycles less often, on the control node.

Ansible forks a process for each task and host. In each of them the collector walks through all that the run holds,
which copies its pages, finds next to nothing, and ends with the process: an eighth of a run that changes nothing
(docs/decisions/0012).
"""

from __future__ import annotations

import gc

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: collect_less
type: aggregate
short_description: Collect cycles less often
description: What a run holds is left alone, and new objects are looked at a hundred times less often.
"""


class CallbackModule(CallbackBase):
    """The callback: it prints nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "collect_less"

    def v2_playbook_on_play_start(self, play: object) -> None:
        """Leave alone what there is when a play starts.

        Args:
            play: The play.
        """
        gc.freeze()
        gc.set_threshold(70_000, 10, 10)
