#!/usr/bin/env python3
"""Holds all that is locked against the advisories that are known, by pip-audit; ``./lab audit`` runs it.

What is accepted stands in ``accepted_vulnerabilities.toml``. Exit codes: 0 when there is nothing else, 1 when there is,
2 for bad input, and 3 when the source of advisories did not answer, or cannot be one: that is no 'all fine'.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.version import Version

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "filter_plugins"))

from locks import requirements

ROOT = pathlib.Path(__file__).resolve().parent.parent
ACCEPTED = "tools/accepted_vulnerabilities.toml"
SOURCES = {"osv": "https://api.osv.dev/v1/query", "pypi": "https://pypi.org/pypi"}
#: What has known vulnerabilities since 2019. Who has none against it does not know any: a mirror, say, that answers
#: whatever it is asked.
KNOWN = ("jinja2", "2.10")

Package = tuple[str, str]


class BadInputError(Exception):
    """A file cannot be used; the message says which and why."""


class NoAnswerError(Exception):
    """It is not known what is vulnerable; the message says why."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A vulnerability of a package.

    Attributes:
        package: Its name and version.
        names: What the vulnerability is called, in this list and in others.
        fixed: Versions that do not have it.
        summary: What it is.
    """

    package: Package
    names: tuple[str, ...]
    fixed: tuple[str, ...]
    summary: str


@dataclasses.dataclass(frozen=True)
class Acceptance:
    """An entry of the file of accepted ones."""

    id: str
    package: str
    until: datetime.date
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Return whether it is about this vulnerability.

        Args:
            finding: The vulnerability.
        """
        return self.package == finding.package[0] and self.id in finding.names


def locked(root: pathlib.Path) -> dict[str, set[Package]]:
    """Read all locks, whatever the hosts that a line is for.

    Args:
        root: The project.

    Returns:
        Lock, by its path, to packages with their versions.
    """
    texts = sorted([*root.glob("roles/airflow/files/**/*.txt"), *root.glob("tools/*requirements.txt")])
    found = {
        str(path.relative_to(root)): {
            (each.name, str(each.specifier).removeprefix("==")) for each in requirements(path.read_text())
        }
        for path in texts
    }
    own = tomllib.loads((root / "uv.lock").read_text())["package"]
    found["uv.lock"] = {(each["name"], each["version"]) for each in own if "registry" in each["source"]}
    return found


def acceptances(path: pathlib.Path) -> list[Acceptance]:
    """Read what is accepted.

    Args:
        path: The file.

    Raises:
        BadInputError: When it cannot be read, or an entry lacks something.
    """
    fields = {"id": str, "package": str, "until": datetime.date, "reason": str}
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"{path}: {error}") from None
    if content.keys() - {"accepted"}:
        raise BadInputError(f"{path}: {', '.join(sorted(content.keys() - {'accepted'}))}: write [[accepted]]")
    entries = []
    for number, entry in enumerate(content.get("accepted", []), start=1):
        wrong = [name for name, kind in fields.items() if type(entry.get(name)) is not kind or not entry[name]]
        wrong += entry.keys() - fields.keys()
        if wrong:
            raise BadInputError(
                f"{path}: entry {number} ({entry.get('id', 'without an id')}): {', '.join(sorted(wrong))}: each has"
                " id, package and reason, as texts, until, as a date (2027-01-31), and nothing else"
            )
        entries.append(Acceptance(**entry))
    return entries


def ask(packages: Iterable[Package], source: str) -> list[Finding]:
    """Ask for the vulnerabilities of packages.

    Args:
        packages: The packages, each perhaps in several versions.
        source: A name of `SOURCES`, or the URL of an API as OSV's.

    Raises:
        NoAnswerError: When one of them got no answer.
    """
    service = [f"--vulnerability-service={source if source in SOURCES else 'osv'}"]
    service += [] if source in SOURCES else [f"--osv-url={source}"]
    rounds: list[dict[str, str]] = []  # pip-audit takes each package once
    for name, version in sorted(packages):
        free = next((each for each in rounds if name not in each), None)
        if free is None:
            rounds.append(free := {})
        free[name] = version
    return [finding for each in rounds for finding in _ask(each, service)]


def _ask(packages: Mapping[str, str], service: Sequence[str]) -> list[Finding]:
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "requirements.txt"
        file.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        command = [sys.executable, "-m", "pip_audit", "--format=json", "--aliases=on", "--desc=on", "--timeout=20"]
        command += ["--progress-spinner=off", "--disable-pip", "--no-deps", f"--requirement={file}", *service]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    return answers(packages, run.stdout, run.stderr)


def answers(packages: Mapping[str, str], output: str, said: str) -> list[Finding]:
    """Read what pip-audit answers.

    Args:
        packages: What it was asked for: name to version.
        output: Its standard output.
        said: Its standard error.

    Raises:
        NoAnswerError: When it failed, or left something out: its exit code tells neither.
    """
    try:
        entries: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        # The last error with a message; what comes after it may have none.
        errors: list[str] = re.findall(r"^[\w.]+: .+", said, re.MULTILINE) or said.split("\n")
        raise NoAnswerError(errors[-1] or "pip-audit says nothing") from None
    answered = {entry["name"]: entry for entry in entries if "vulns" in entry}
    silent = sorted(packages.keys() - answered.keys())
    if silent:
        reasons = {entry["name"]: entry.get("skip_reason") for entry in entries}
        raise NoAnswerError(
            f"no answer for {len(silent)} of {len(packages)} packages; {silent[0]}: {reasons.get(silent[0])}"
        )
    return [
        Finding(
            package=(name, entry["version"]),
            names=(each["id"], *sorted(set(each["aliases"]) - {each["id"]})),
            fixed=tuple(each["fix_versions"]),
            summary=" ".join(each["description"].split()),
        )
        for name, entry in sorted(answered.items())
        for each in entry["vulns"]
    ]


def judge(
    findings: Sequence[Finding], accepted: Sequence[Acceptance], today: datetime.date
) -> tuple[list[Finding], list[str]]:
    """Say what is not accepted, and what is wrong with what is.

    Args:
        findings: The vulnerabilities.
        accepted: The entries.
        today: The date.

    Returns:
        The vulnerabilities that no entry covers, and a sentence for each entry to be mended.
    """
    valid = [each for each in accepted if each.until >= today]
    new = [finding for finding in findings if not any(each.covers(finding) for each in valid)]
    stale = []
    for each in accepted:
        if not any(each.covers(finding) for finding in findings):
            stale.append(f"{each.id} of {each.package}: no lock has it now. Remove the entry.")
        elif each not in valid:
            stale.append(f"{each.id} of {each.package}: accepted until {each.until}. Look at it again.")
    return new, stale


def report(
    locks: Mapping[str, set[Package]], findings: Sequence[Finding], accepted: Sequence[Acceptance], today: datetime.date
) -> tuple[str, bool]:
    """Write what was found.

    Args:
        locks: As `locked` gives them.
        findings: The vulnerabilities.
        accepted: The entries.
        today: The date.

    Returns:
        The text, and whether all is well.
    """
    new, stale = judge(findings, accepted, today)
    lines = []
    for finding in new:
        name, version = finding.package
        places = [lock for lock, packages in locks.items() if finding.package in packages]
        lines += [
            f"VULNERABLE: {name} {version}, in {', '.join(places)}",
            f"    {finding.names[0]}" + (f" ({', '.join(finding.names[1:])})" if finding.names[1:] else ""),
            f"    {finding.summary[:300]}",
            f"    fixed in {', '.join(finding.fixed)}" if finding.fixed else "    no version has it fixed",
        ]
    lines += [f"ACCEPTED until {each.until}: {each.id} of {each.package}: {each.reason}" for each in accepted]
    lines += [f"TO BE MENDED in {ACCEPTED}: {each}" for each in stale]
    if new:
        lines += [
            "",
            "What to do: make the lock anew with a version that has it fixed. The command is at the head of the lock,",
            "or of its .in file; for uv.lock: uv lock --upgrade-package NAME (first what pyproject.toml pins).",
            f"What cannot be had yet, or does not concern us, is accepted in {ACCEPTED}.",
        ]
    return "\n".join(lines), not new and not stale


def write_sbom(root: pathlib.Path, file: pathlib.Path) -> None:
    """Write what a host's environment consists of, by the newest lock, with all hashes.

    Args:
        root: The project.
        file: Where to, as CycloneDX in JSON.
    """
    lock = max(root.glob("roles/airflow/files/locks/*.txt"), key=lambda path: Version(path.stem))
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "--pyproject", str(root / "pyproject.toml")]
    command += ["--output-reproducible", "--output-format=JSON", f"--output-file={file}", str(lock)]
    # It warns that a lock does not say who needs what.
    subprocess.run(command, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    print(f"audit: {file}: what {lock.relative_to(root)} installs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit.

    Args:
        arguments: The command line.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default="osv", help="osv, pypi, or the URL of an API as OSV's")
    parser.add_argument("--sbom", type=pathlib.Path, metavar="FILE", help="write an SBOM instead")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the project")
    options = parser.parse_args(arguments)
    if options.sbom:
        if not options.sbom.parent.is_dir():
            parser.error(f"--sbom: there is no directory {options.sbom.parent}")
        write_sbom(options.root, options.sbom)
        return 0
    if options.source not in SOURCES and "://" not in options.source:
        parser.error(f"--source (LAB_ADVISORIES) is '{options.source}': use osv, pypi, or a URL")
    asked = SOURCES.get(options.source, options.source)
    try:
        accepted = acceptances(options.root / ACCEPTED)
        locks = locked(options.root)
        packages = set().union(*locks.values())
        if not ask([KNOWN], options.source):
            raise NoAnswerError(f"it knows nothing against {' '.join(KNOWN)}, and so is no source of advisories")
        findings = ask(packages, options.source)
    except BadInputError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 2
    except NoAnswerError as error:
        print(f"audit: NOT KNOWN what is vulnerable: {asked} did not answer: {error}", file=sys.stderr)
        print(
            "       Try again where it is reached, or with another: LAB_ADVISORIES=pypi, or a mirror", file=sys.stderr
        )
        return 3
    text, well = report(locks, findings, accepted, datetime.date.today())
    print(
        "\n".join(filter(None, [text, f"audit: {len(packages)} packages of {len(locks)} locks, by {asked}:"])), end=" "
    )
    print("no vulnerability that is not accepted" if well else "not all is well")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
