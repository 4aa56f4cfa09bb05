"""The lab's own logic, without Docker: containers, inventories, and what is refused."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import airflow_api
import lab
import lab_inventory
import pytest
import report_counts
import yaml

SCENARIOS = sorted(path.parent.name for path in (pathlib.Path(__file__).parents[2] / "molecule").glob("*/molecule.yml"))


def load(path: pathlib.Path) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    data: dict[str, dict[str, dict[str, dict[str, str]]]] = yaml.safe_load(path.read_text())
    return data


def platforms(project: pathlib.Path, scenario: str) -> list[dict[str, str]]:
    text = (project / "molecule" / scenario / "molecule.yml").read_text()
    result: list[dict[str, str]] = yaml.safe_load(text)["platforms"]
    return result


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_has_a_vm_for_each_host_of_its_inventory(project: pathlib.Path, scenario: str) -> None:
    inventory = load(project / "inventory" / scenario / "hosts.yml")
    names = [platform["name"] for platform in platforms(project, scenario)]
    assert names == list(inventory["all"]["hosts"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_vms_stand_at_the_addresses_of_the_shipped_inventory(project: pathlib.Path, scenario: str) -> None:
    hosts = load(project / "inventory" / scenario / "hosts.yml")["all"]["hosts"]
    vms = lab.vm_platforms(platforms(project, scenario), hosts, scenario, "bookworm", "/files", "/cache")
    assert {vm["hostname"]: vm["networks"][0]["ipv4_address"] for vm in vms} == {
        name: variables["ansible_host"] for name, variables in hosts.items()
    }
    assert {vm["docker_networks"][0]["ipam_config"][0]["subnet"] for vm in vms} == {"192.168.83.0/24"}


def test_a_vm_is_not_privileged_and_is_labelled_as_ours() -> None:
    (vm,) = lab.vm_platforms([{"name": "main"}], {"main": {"ansible_host": "10.1.2.3"}}, "s", "trixie", "/f", "/c")
    assert "privileged" not in vm
    assert vm["labels"]["owner"] == "airflow-lab"
    assert vm["name"] == "airflow-lab-s-main"
    assert (vm["image"], vm["pull"]) == ("airflow-lab:trixie", "never")
    assert vm["keep_volumes"] is False
    writable = [volume for volume in vm["volumes"] if not volume.endswith(":ro")]
    assert writable == [
        *lab.WRITTEN,  # gone with the container
        "/sys/fs/cgroup:/sys/fs/cgroup:rw",
        "/c/uv:/var/cache/lab/uv",
        "/c/apt/trixie/main:/var/cache/apt/archives",
    ]


def test_vms_in_two_networks_are_refused() -> None:
    hosts = {"a": {"ansible_host": "10.1.2.3"}, "b": {"ansible_host": "10.1.3.3"}}
    with pytest.raises(ValueError, match=r"10\.1\.2\.0/24.*10\.1\.3\.0/24"):
        lab.vm_platforms([{"name": "a"}, {"name": "b"}], hosts, "s", "trixie", "/f", "/c")


def test_the_interface_name_is_short_enough() -> None:
    assert len(lab.BRIDGE) <= 15


def test_another_subnet_moves_every_host_and_the_usual_one_none() -> None:
    inventory = {"_meta": {"hostvars": {"main": {"ansible_host": "192.168.83.129"}}}}
    assert lab_inventory.layer(inventory, "192.168.90") == {
        "all": {"hosts": {"main": {"ansible_host": "192.168.90.129"}}}
    }
    assert lab_inventory.layer(inventory, "192.168.83") == {"all": {}}


def run_lab(project: pathlib.Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "lab", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def test_help_names_every_command(project: pathlib.Path) -> None:
    source = (project / "lab").read_text()
    commands = re.findall(r"^cmd_(\w+)\(\)", source, re.MULTILINE)
    text = run_lab(project, "help").stdout
    assert commands
    for command in commands:
        assert re.search(rf"^  {command}\b", text, re.MULTILINE), command


def test_every_setting_is_in_the_help(project: pathlib.Path) -> None:
    source = (project / "lab").read_text()
    text = run_lab(project, "help").stdout
    for name in set(re.findall(r"\$\{(LAB_[A-Z]+)", source)):
        assert f"  {name}=" in text, name


def test_an_unknown_command_is_refused_by_name(project: pathlib.Path) -> None:
    result = run_lab(project, "destroy")
    assert result.returncode == 1
    assert "no command 'destroy'" in result.stderr


def call_lab(project: pathlib.Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run shell code among ./lab's functions, which end the shell at the first failure."""
    # A signal that is ignored when a shell starts, as in the background of a script, stays so in it.
    return subprocess.run(
        ["env", "--default-signal=INT", "bash", "-c", f"source ./lab help > /dev/null; sudo=()\n{code}"],
        capture_output=True,
        text=True,
        cwd=project,
        check=False,
    )


@pytest.mark.parametrize("code", ["exit 3", "kill -TERM ${BASHPID}", "kill -INT ${BASHPID}"])
def test_services_may_not_start_while_packages_are_installed_and_may_afterwards(
    project: pathlib.Path, tmp_path: pathlib.Path, code: str
) -> None:
    policy = tmp_path / "policy-rc.d"
    work = f'work() {{ "${{policy}}" || echo "answer $?"; {code}; }}'
    result = call_lab(project, f"policy={policy}; {work}; without_services work")
    assert result.stdout == "answer 101\n"
    assert result.returncode != 0
    assert not policy.exists()


def test_a_policy_for_services_that_is_there_is_left_alone(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    assert call_lab(project, f"policy={policy}; without_services true").returncode == 0
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


@pytest.mark.parametrize(
    ("ci", "left"),
    [
        pytest.param("", ["gone-running", "gone-stopped"], id="by hand"),
        pytest.param("true", ["gone-running", "gone-stopped", "there-stopped"], id="ci"),
    ],
)
def test_vms_that_nobody_will_use_again_are_told_from_those_in_use(
    project: pathlib.Path, tmp_path: pathlib.Path, ci: str, left: list[str]
) -> None:
    lines = [
        f"own-stopped exited distributed {project}/.lab/vm",
        f"gone-running running distributed {tmp_path}/gone/.lab/vm",
        f"gone-stopped exited distributed {tmp_path}/gone/.lab/vm",
        f"there-running running distributed {tmp_path}",
        f"there-stopped exited distributed {tmp_path}",
    ]
    listing = "\n".join(lines)
    result = call_lab(project, f"vms() {{ printf '%s\\n' '{listing}'; }}; CI={ci}; left_vms")
    assert result.stdout.split() == left


def test_programs_beside_the_path_of_a_user_are_found(project: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A machine that has nothing but what stands in /usr/sbin lacks exactly the rest."""
    programs = {"openssh-server": "sshd", "rabbitmq-server": "rabbitmq-server", "sudo": "sudo"}
    result = call_lab(project, f"PATH={tmp_path}; missing_test_packages")
    expected = [
        package
        for package, program in programs.items()
        if package == "sudo" or not pathlib.Path("/usr/sbin", program).exists()
    ]
    assert result.stdout.split() == expected


def test_printed_lines_leaves_out_what_airflow_says() -> None:
    hook = "airflow.task.hooks.airflow.providers.standard.hooks.subprocess.SubprocessHook"
    log = [
        {"event": "::group::Log message source details"},
        {"event": "DAG bundles loaded", "logger": "airflow.dag_processing"},
        {"event": "Output:", "logger": hook},
        {"event": "vm2", "logger": hook},
        {"event": "Command exited with return code 0", "logger": hook},
        {"event": "from print", "logger": "task.stdout"},
        {"event": "from a VM", "logger": "airflow.task.operators.remote_tasks.operators.RemoteCommandOperator"},
    ]
    assert airflow_api.printed_lines(log) == ["vm2", "from print", "from a VM"]


def test_counts_are_added_up(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = '<testsuites><testsuite tests="5" failures="{}" errors="0" skipped="1"/></testsuites>'
    (tmp_path / "a.xml").write_text(suite.format(0))
    assert report_counts.main(str(tmp_path)) == 0
    (tmp_path / "b.xml").write_text(suite.format(2))
    assert report_counts.main(str(tmp_path)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "all: 6 passed, 2 failed, 2 skipped"
