"""`./lab audit`, with the real pip-audit, against an API that answers as OSV's does, or that does not."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import audit
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TODAY = datetime.date(2027, 1, 15)
LATER = datetime.date(2999, 1, 1)


def advisory(package: str, name: str, fixed: str, *aliases: str, **more: Any) -> dict[str, Any]:
    """A record as OSV has them."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fixed}]}]
    affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "ranges": ranges}]
    return {"id": name, "aliases": aliases, "details": f"What {name}\nis.", "affected": affected, **more}


#: What OSV has against these versions; the first is what each source of advisories is tried with.
RECORDS = {
    audit.KNOWN: [advisory("jinja2", "PYSEC-2019-217", "2.10.1", "CVE-2019-10906")],
    ("celery", "5.2.0"): [
        advisory("celery", "GHSA-q4xr-rc97-m4xx", "5.2.2", "CVE-2021-23727"),
        advisory("celery", "PYSEC-2021-858", "5.2.2", "CVE-2021-23727", "GHSA-q4xr-rc97-m4xx"),
        advisory("celery", "PYSEC-2021-000", "5.2.1", withdrawn="2022-01-01T00:00:00Z"),
    ],
    ("deprecated", "3.0.0"): [advisory("deprecated", "PYSEC-2026-1", "3.0.1")],
}


@contextlib.contextmanager
def osv(records: Mapping[audit.Package, list[dict[str, Any]]], status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """An API as OSV's with these records; its URL, and what it was asked."""
    asked: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = (query["package"]["name"], query["version"])
            asked.append(package)
            answer = json.dumps({"vulns": records[package]} if package in records else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        finally:
            server.shutdown()


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small project with a lock of each kind."""
    for directory in ("roles/airflow/files/locks", "tools"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "roles/airflow/files/locks/3.3.2.txt").write_text(
        "celery==5.6.3 \\\n    --hash=sha256:00\n    # via apache-airflow\n"
        "deprecated==1.3.1 ; python_full_version < '3.12' \\\n    --hash=sha256:01\n"
        "deprecated==2.0.0 ; python_full_version >= '3.12' \\\n    --hash=sha256:02\n"
    )
    (tmp_path / "roles/airflow/files/installer.txt").write_text("uv==0.13.8 --hash=sha256:03\n")
    (tmp_path / "tools/uv-requirements.txt").write_text("# How to renew it\nuv==0.13.8 --hash=sha256:03\n")
    (tmp_path / "uv.lock").write_text(
        '[[package]]\nname = "own"\nversion = "0.1"\nsource = {virtual = "."}\n'
        '[[package]]\nname = "jinja2"\nversion = "3.1.6"\nsource = {registry = "https://example.org"}\n'
    )
    accept(tmp_path)
    return tmp_path


def accept(project: pathlib.Path, *entries: str) -> None:
    (project / audit.ACCEPTED).write_text("".join(f"[[accepted]]\n{entry}\n" for entry in entries))


def lock(project: pathlib.Path, line: str) -> None:
    with (project / "roles/airflow/files/locks/3.3.2.txt").open("a") as file:
        file.write(f"{line} --hash=sha256:04\n")


def call(project: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `./lab audit` does, with its environment."""
    python = pathlib.Path(sys.prefix).parent / "audit/bin/python"
    assert python.exists(), "run `./lab test unit` once: it installs pip-audit"
    command = [str(python), str(ROOT / "tools/audit.py"), *arguments]
    settings = {
        **os.environ,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "XDG_CACHE_HOME": str(project / "cache"),
    }
    return subprocess.run(command, capture_output=True, text=True, check=False, env=settings)


def run(project: pathlib.Path, source: str) -> subprocess.CompletedProcess[str]:
    return call(project, "--root", str(project), "--source", source)


def test_nothing_is_known_and_every_version_in_every_lock_was_asked_for(project: pathlib.Path) -> None:
    with osv(RECORDS) as (url, asked):
        done = run(project, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"audit: 5 packages of 4 locks, by {url}: no vulnerability that is not accepted\n"
    assert sorted(asked) == sorted(
        [
            audit.KNOWN,
            ("celery", "5.6.3"),
            ("deprecated", "1.3.1"),
            ("deprecated", "2.0.0"),  # for other hosts than this
            ("jinja2", "3.1.6"),
            ("uv", "0.13.8"),
        ]
    )


def test_what_is_vulnerable_is_named_with_its_lock_and_what_mends_it(project: pathlib.Path) -> None:
    (project / "roles/airflow/files/installer.txt").write_text("celery==5.2.0 --hash=sha256:04\n")
    lock(project, "deprecated==3.0.0 ; python_version >= '4'")
    with osv(RECORDS) as (url, _):
        done = run(project, url)
    assert done.returncode == 1, done.stderr
    assert "VULNERABLE: celery 5.2.0, in roles/airflow/files/installer.txt\n" in done.stdout
    # One, by its three names; and not the one that was withdrawn.
    assert "PYSEC-2021-858 (CVE-2021-23727, GHSA-q4xr-rc97-m4xx)\n    What PYSEC-2021-858 is.\n" in done.stdout
    assert "fixed in 5.2.2\n" in done.stdout
    assert "VULNERABLE: deprecated 3.0.0, in roles/airflow/files/locks/3.3.2.txt\n" in done.stdout
    assert done.stdout.count("VULNERABLE") == 2
    assert "uv lock --upgrade-package NAME" in done.stdout
    assert done.stdout.endswith("not all is well\n")


@pytest.mark.parametrize("name", ["PYSEC-2021-858", "CVE-2021-23727"])
def test_what_is_accepted_is_shown_with_its_reason(project: pathlib.Path, name: str) -> None:
    lock(project, "celery==5.2.0")
    accept(project, f'id = "{name}"\npackage = "celery"\nuntil = {LATER}\nreason = "Not reached."')
    with osv(RECORDS) as (url, _):
        done = run(project, url)
    assert done.returncode == 0, done.stdout
    assert f"ACCEPTED until {LATER}: {name} of celery: Not reached.\n" in done.stdout
    assert "VULNERABLE" not in done.stdout


def finding(package: str = "celery", *names: str) -> audit.Finding:
    return audit.Finding((package, "5.2.0"), names or ("PYSEC-1", "CVE-1"), (), "Bad.")


def entry(until: datetime.date = LATER, package: str = "celery", name: str = "CVE-1") -> audit.Acceptance:
    return audit.Acceptance(name, package, until, "a reason")


def test_an_entry_covers_its_vulnerability_of_its_package_up_to_its_last_day() -> None:
    assert audit.judge([finding()], [entry(until=TODAY)], TODAY) == ([], [])
    run_out = entry(until=TODAY - datetime.timedelta(days=1))
    assert audit.judge([finding()], [run_out], TODAY) == (
        [finding()],
        ["CVE-1 of celery: accepted until 2027-01-14. Look at it again."],
    )
    for other in (entry(package="kombu"), entry(name="CVE-2")):
        new, stale = audit.judge([finding()], [other], TODAY)
        assert new == [finding()]
        assert stale == [f"{other.id} of {other.package}: no lock has it now. Remove the entry."]


def test_an_entry_that_applies_no_longer_is_not_all_well(project: pathlib.Path) -> None:
    accept(project, f'id = "PYSEC-2021-858"\npackage = "celery"\nuntil = {LATER}\nreason = "Not reached."')
    with osv(RECORDS) as (url, _):
        done = run(project, url)
    assert done.returncode == 1
    assert f"TO BE MENDED in {audit.ACCEPTED}: PYSEC-2021-858 of celery: no lock has it now." in done.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[accepted]]\nid = 'CVE-1'\npackage = 'a'\nuntil = 2027-01-31", "entry 1 (CVE-1): reason"),
        ("[[accepted]]\nid = 'CVE-1'\npackage = 'a'\nuntil = 2027-01-31\nreason = ''", "entry 1 (CVE-1): reason"),
        ("[[accepted]]\nid = 'CVE-1'\npackage = 'a'\nuntil = 'soon'\nreason = 'b'", "entry 1 (CVE-1): until"),
        ("[[accepted]]\npackage = 'a'\nuntil = 2027-01-31\nreason = 'b'\nwhy = 'c'", "(without an id): id, why"),
        ("[[accept]]\nid = 'CVE-1'", "accept: write [[accepted]]"),
        ("accepted", audit.ACCEPTED),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_before_anybody_is_asked(
    project: pathlib.Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (project / audit.ACCEPTED).write_text(content)
    with osv(RECORDS) as (url, asked):
        assert audit.main(["--root", str(project), "--source", url]) == 2
    assert said in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize(
    ("records", "status", "reason"),
    [
        ({}, 200, "it knows nothing against jinja2 2.10"),  # whatever it is asked
        (RECORDS, 503, "503"),
    ],
)
def test_a_source_that_does_not_know_is_no_all_clear(
    project: pathlib.Path, records: dict[audit.Package, list[dict[str, Any]]], status: int, reason: str
) -> None:
    with osv(records, status) as (url, _):
        done = run(project, url)
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"NOT KNOWN what is vulnerable: {url} did not answer: " in done.stderr
    assert reason in done.stderr


def test_a_source_that_is_not_reached_is_no_all_clear(project: pathlib.Path) -> None:
    done = run(project, "http://127.0.0.1:9/v1/query")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Connection refused" in done.stderr


def test_a_package_that_pip_audit_leaves_out_is_no_all_clear() -> None:
    """What it answers, with success, where an index has no advisories (seen with a mirror of PyPI)."""
    output = {"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}]}
    with pytest.raises(audit.NoAnswerError, match="no answer for 2 of 3 packages; b: not found"):
        audit.answers({"a": "1", "b": "1", "c": "1"}, json.dumps(output), "")
    assert audit.answers({"a": "1"}, json.dumps(output), "") == []


def test_what_is_no_source_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        audit.main(["--source", "ovs"])
    assert "LAB_ADVISORIES) is 'ovs'" in capsys.readouterr().err


def test_the_locks_of_this_project_are_all_read() -> None:
    found = audit.locked(ROOT)
    assert ("apache-airflow", "3.3.2") in found["roles/airflow/files/locks/3.3.2.txt"]
    # Each file that holds hashes, wherever it is.
    listed = subprocess.run(
        ["git", "grep", "-lE", "sha256:[0-9a-f]{64}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(found) == sorted(listed)
    for path in (name for name in found if name.endswith(".txt")):
        lines = [line for line in (ROOT / path).read_text().splitlines() if "==" in line and line[0] not in " #"]
        assert len(found[path]) == len(lines) > 0
    assert len(found["uv.lock"]) == len(tomllib.loads((ROOT / "uv.lock").read_text())["package"]) - 1
    assert all(version[0].isdigit() for packages in found.values() for _, version in packages)


def test_what_this_project_accepts_can_be_read() -> None:
    for each in audit.acceptances(ROOT / audit.ACCEPTED):
        assert len(each.reason) > 20, f"{each.id}: say why"


def test_the_sbom_has_each_package_of_the_hosts_with_its_hashes(tmp_path: pathlib.Path) -> None:
    done = call(tmp_path, "--sbom", str(tmp_path / "sbom.json"))
    assert done.returncode == 0, done.stderr
    sbom = json.loads((tmp_path / "sbom.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    newest = audit.locked(ROOT)["roles/airflow/files/locks/3.3.2.txt"]
    assert {(each["name"], each["version"]) for each in sbom["components"]} == newest
    assert all(each["externalReferences"][0]["hashes"] for each in sbom["components"])
