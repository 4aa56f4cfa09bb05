"""Pure functions that build what is run on a VM: strings in, strings out.

A command travels in two parts. The *launcher* is a constant shell line, the only thing that the
VM's login shell has to parse. It makes sure that it leads a process group, says which, and reads
the *order* from its standard input: shell code with the environment, the directory and the
command, closed by a line with a token. So

- values are quoted once, by `shlex.quote`, whatever the login shell is;
- variables do not show in the process list;
- an order that did not arrive whole is not run: who lost the connection before sending the token
  line knows that nothing has happened.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from remote_tasks.errors import CommandError

MAX_ARGUMENT = 128 * 1024 - 1
"""Bytes that Linux takes in one argument or variable (MAX_ARG_STRLEN without the final NUL)."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# $1 is the main script, $2 the token. OpenSSH gives each command a session of its own, and so does
# the local transport; setsid covers an SSH server that does not. Never a group that we do not lead:
# the kill would hit others.
_LEAD = (
    "read -r x </proc/$$/stat; m=$1 t=$2; x=${x##*) }; set -- $x; "
    'if [ "$3" != "$$" ]; then exec setsid /bin/sh -c "$m" remote-tasks "$t"; fi; '
    'set -- "$t"; eval "$m"'
)

# The start time (field 22) tells the group from a later one that got the same number.
_MAIN = """read -r x </proc/$$/stat; x=${x##*) }; t=$1; set -- $x
printf "%s %s %s\\n" "$t" "$$" "${20}" >&2; printf "%s\\n" "$t"
s=; while IFS= read -r l; do
if [ "$l" = "$t" ]; then eval "$s"; exit; fi
s="$s$l
"; done; exit 255"""

# $1 group, $2 start time of its leader, $3 tenths of a second to wait. Zombies do not count: nobody
# may be there to reap them. A number that belongs to a younger process is left alone. A group
# that this login may not signal (the command used sudo) is killed by sudo, where that is allowed.
_KILL = """g=$1 b=$2 n=$3
ours() { [ -r "/proc/$g/stat" ] || return 0
read -r x <"/proc/$g/stat" || return 0; x=${x##*) }; set -- $x; [ "${20}" = "$b" ]; }
alive() { for f in /proc/[0-9]*/stat; do x=; read -r x <"$f" || continue; x=${x##*) }; set -- $x
case $3:$1 in "$g":[ZX]) ;; "$g":*) return 0 ;; esac; done 2>/dev/null; return 1; }
wait_gone() { i=0; while alive; do [ "$i" -lt "$1" ] || return 1; sleep 0.1; i=$((i+1)); done; }
ours || { echo reused; exit; }
alive || { echo gone; exit; }
kill -TERM "-$g" 2>/dev/null; kill -CONT "-$g" 2>/dev/null
wait_gone "$n" && { echo killed; exit; }
kill -KILL "-$g" 2>/dev/null
wait_gone 5 && { echo killed; exit; }
sudo -n kill -KILL -- "-$g" </dev/null >/dev/null 2>&1
wait_gone 10 && { echo killed; exit; }
echo left"""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        line: A shell command line, run by ``bash -c`` where there is a bash, else by ``sh -c``.
        cwd: The directory to run it in; by default the login's home.
        env: Variables to set for it.
    """

    line: str
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Command:
        """Make a command from a shell line or a list of arguments, and check it.

        Args:
            command: A shell command line, or arguments that arrive exactly as given.
            cwd: The directory to run in.
            env: Variables to set.

        Returns:
            The command.

        Raises:
            CommandError: It cannot be run as given; the message says why.
        """
        if isinstance(command, str):
            line = command
        else:
            arguments = list(command)
            for argument in arguments:
                if not isinstance(argument, str):
                    raise CommandError(
                        f"An argument must be a string, got {type(argument).__name__} "
                        f"({argument!r:.60}) in {arguments!r:.200}."
                    )
            line = shlex.join(arguments)
        if not line.strip():
            raise CommandError("The command is empty.")
        _check_text("The command", line)
        if cwd is not None:
            _check_text("The directory", cwd)
            if not cwd:
                raise CommandError("The directory is empty; leave it out to run in the home.")
        checked: dict[str, str] = {}
        for key, value in (env or {}).items():
            if not isinstance(key, str) or not _VARIABLE.fullmatch(key):
                raise CommandError(
                    f"{key!r} is no name for an environment variable: letters, digits and '_'."
                )
            if not isinstance(value, str):
                raise CommandError(
                    f"The variable {key} must be a string, got {type(value).__name__}."
                )
            _check_text(f"The variable {key}", f"{key}={value}")
            checked[key] = value
        return cls(line=line, cwd=cwd, env=checked)


def _check_text(what: str, text: str) -> None:
    if "\0" in text:
        raise CommandError(f"{what} contains a NUL byte, which no program can be given.")
    size = len(encode(text))
    if size > MAX_ARGUMENT:
        raise CommandError(
            f"{what} is {size} bytes long; Linux takes {MAX_ARGUMENT}. "
            "Send large data as standard input, or as a file."
        )


def encode(text: str) -> bytes:
    """Encode text for a VM.

    Args:
        text: The text; file names that were decoded with surrogates come out as they were.

    Returns:
        UTF-8, or the original bytes.

    Raises:
        CommandError: There is a lone surrogate in it that stands for no byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise CommandError(f"Not encodable as UTF-8: {error}") from error


def launcher(token: str) -> str:
    """Build the line that the login shell runs.

    Args:
        token: Letters and digits, new for each command.

    Returns:
        A shell line that depends on nothing else.
    """
    return f"exec /bin/sh -c {shlex.quote(_LEAD)} remote-tasks {shlex.quote(_MAIN)} {token}"


def order(command: Command, token: str) -> bytes:
    """Build what the launcher reads from its standard input.

    Args:
        command: The command.
        token: The launcher's token.

    Returns:
        The bytes to send before any standard input of the command itself.
    """
    # A bash that believes to be the outermost one behind sshd reads .bashrc: the login shell has
    # done that already, and whatever that prints would stand in the command's output.
    lines = ["export SHLVL=2"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in command.env.items()]
    if command.cwd is not None:
        # CDPATH would send a relative path elsewhere, and cd print where.
        lines.append(f"CDPATH= cd -- {shlex.quote(command.cwd)} || exit 1")
    line = shlex.quote(command.line)
    lines.append(
        f"if command -v bash >/dev/null 2>&1; then exec bash -c {line}; else exec sh -c {line}; fi"
    )
    return encode("\n".join([*lines, token, ""]))


def killer(group: int, started: int, grace: float) -> str:
    """Build the line that ends a process group: SIGTERM, then SIGKILL.

    Args:
        group: The process group.
        started: The start time of its leader, in the kernel's ticks since boot.
        grace: Seconds between the two signals.

    Returns:
        A shell line; it prints ``gone``, ``killed``, ``reused`` (the number belongs to somebody
        else by now) or ``left`` (still there in spite of all).
    """
    tenths = max(0, round(grace * 10))
    return f"exec /bin/sh -c {shlex.quote(_KILL)} remote-tasks {group} {started} {tenths}"
