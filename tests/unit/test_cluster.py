"""What the inventory means: filter_plugins/cluster.py."""

from __future__ import annotations

import pathlib
import re
import subprocess
import urllib.parse
from typing import Any

import cluster
import pytest

GROUPS = {
    "all": ["main", "vm2", "vm3"],
    "ungrouped": [],
    "postgresql": ["main"],
    "rabbitmq": ["main"],
    "scheduler": ["main"],
    "webserver": ["main"],
    "flower": ["main"],
    "target_vms": ["vm2", "vm3"],
}


def vm(name: str, **variables: Any) -> dict[str, Any]:
    host = {"inventory_hostname": name, "ansible_host": f"192.0.2.{len(name)}", "ansible_user": "rocky"}
    return cluster.target({**host, **variables})


@pytest.mark.parametrize("user", ["", "airflow"])
def test_a_target_without_a_login_of_its_own_is_refused(user: str) -> None:
    (problem,) = cluster.target_problems([vm("vm2", ansible_user=user)])
    assert f"would run as {user!r}" in problem
    assert "target_user" in problem


TARGETS = [vm("vm2"), vm("vm3")]


def test_a_target_is_what_the_inventory_says() -> None:
    host = {"inventory_hostname": "vm2", "ansible_host": "192.168.83.130", "ansible_user": "rocky"}
    assert cluster.target(host) == {
        "name": "vm2",
        "host": "192.168.83.130",
        "port": 22,
        "user": "rocky",
        "queue": "vm2_queue",
        "description": "Target VM vm2",
    }


def test_an_address_falls_back_to_the_name() -> None:
    assert cluster.address({"inventory_hostname": "vm2.example.org"}) == "vm2.example.org"


def test_celery_mode_has_a_worker_on_each_target_and_shares_the_default_queue() -> None:
    laid_out = cluster.workers(TARGETS, "celery", "main")
    assert [(worker["name"], worker["host"], worker["queues"]) for worker in laid_out] == [
        ("general", "main", ["all_vms_queue", "file_transfer_queue"]),
        ("vm2", "vm2", ["vm2_queue", "default"]),
        ("vm3", "vm3", ["vm3_queue", "default"]),
    ]


def test_ssh_mode_has_all_workers_on_main_and_keeps_targets_apart() -> None:
    laid_out = cluster.workers(TARGETS, "ssh", "main")
    assert [(worker["name"], worker["host"], worker["queues"]) for worker in laid_out] == [
        ("general", "main", ["default", "all_vms_queue", "file_transfer_queue"]),
        ("vm2", "main", ["vm2_queue"]),
        ("vm3", "main", ["vm3_queue"]),
    ]


@pytest.mark.parametrize("mode", cluster.MODES)
def test_one_worker_of_each_host_serves_the_logs(mode: str) -> None:
    laid_out = cluster.workers(TARGETS, mode, "main")
    serving = [worker["host"] for worker in laid_out if worker["serves_logs"]]
    assert sorted(serving) == sorted({worker["host"] for worker in laid_out})


def test_the_role_of_a_worker_follows_the_mode() -> None:
    roles = {mode: [w["role"] for w in cluster.workers(TARGETS, mode, "main")] for mode in cluster.MODES}
    assert roles == {"celery": ["celery_worker"] * 3, "ssh": ["celery_worker", "ssh_worker", "ssh_worker"]}


def seen_from(host: str, targets: list[dict[str, Any]] = TARGETS) -> dict[str, str]:
    return {
        vm["name"]: vm["transport"] for vm in cluster.targets_seen_from(targets, host, "main", "/key", "/known_hosts")
    }


def test_main_reaches_every_target_over_ssh_and_a_target_itself_alone() -> None:
    assert seen_from("main") == {"vm2": "ssh", "vm3": "ssh"}
    assert seen_from("vm2") == {"vm2": "local", "vm3": "none"}
    assert seen_from("another") == {"vm2": "none", "vm3": "none"}
    assert seen_from("main", [vm("main"), vm("vm2")]) == {"main": "local", "vm2": "ssh"}


def test_only_main_is_told_of_the_key() -> None:
    for entry in cluster.targets_seen_from(TARGETS, "vm2", "main", "/key", "/known_hosts"):
        assert "key_file" not in entry


def test_the_login_of_a_target_can_be_chosen() -> None:
    assert vm("vm2", ansible_user="rocky")["user"] == "rocky"
    assert vm("vm2", ansible_user="rocky", target_user="runner")["user"] == "runner"


KEY_FACTS = {
    "ssh_host_key_ed25519_public": "AAAA",
    "ssh_host_key_ed25519_public_keytype": "ssh-ed25519",
    "ssh_host_key_rsa_public": "BBBB",
    "ssh_host_key_rsa_public_keytype": "ssh-rsa",
}
KEYS = {"ssh-ed25519": "AAAA", "ssh-rsa": "BBBB"}
#: On a port of its own.
OTHER = vm("vm3", ansible_port=2222)


def test_host_keys_come_from_facts() -> None:
    assert cluster.host_keys(KEY_FACTS) == KEYS
    assert cluster.host_keys({}) == {}


def test_host_keys_are_pinned_by_address_and_port() -> None:
    text = cluster.known_hosts([TARGETS[0], OTHER], {"vm2": KEYS, "vm3": KEYS}, "")
    assert text.splitlines() == [
        "192.0.2.3 ssh-ed25519 AAAA",
        "192.0.2.3 ssh-rsa BBBB",
        "[192.0.2.3]:2222 ssh-ed25519 AAAA",
        "[192.0.2.3]:2222 ssh-rsa BBBB",
    ]
    assert cluster.pinned_keys(text, OTHER) == KEYS


def test_a_target_that_a_run_leaves_out_keeps_its_pin_and_one_that_is_gone_does_not() -> None:
    before = cluster.known_hosts([TARGETS[0], OTHER], {"vm2": KEYS, "vm3": KEYS}, "")
    assert cluster.known_hosts([TARGETS[0], OTHER], {"vm2": KEYS}, before) == before
    assert cluster.known_hosts([OTHER], {}, before).splitlines() == before.splitlines()[2:]


def test_a_changed_host_key_is_refused_with_both_and_how_to_accept_it() -> None:
    before = cluster.known_hosts(TARGETS[:1], {"vm2": KEYS}, "")
    assert cluster.host_key_problems(TARGETS[0], KEYS, before) == []
    assert cluster.host_key_problems(TARGETS[0], {"ssh-ed25519": "AAAA", "ecdsa-sha2-nistp256": "CCCC"}, before) == []
    assert cluster.host_key_problems(TARGETS[0], KEYS, "") == []
    (problem,) = cluster.host_key_problems(TARGETS[0], {**KEYS, "ssh-ed25519": "DDDD"}, before)
    assert "accept_host_key.yml -e vm=vm2" in problem
    assert problem.count("SHA256:") == 2


def test_a_fingerprint_is_the_one_that_ssh_shows(tmp_path: pathlib.Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True).stdout
    public = key.with_suffix(".pub").read_text().split()[1]
    (problem,) = cluster.host_key_problems(
        TARGETS[0], {"ssh-ed25519": public}, cluster.known_hosts(TARGETS[:1], {"vm2": KEYS}, "")
    )
    assert shown.split()[1] in problem


def test_ssh_workers_serve_default_when_asked_to() -> None:
    contract = cluster.queues(cluster.workers(TARGETS, "ssh", "main", ssh_workers_serve_default=True))
    assert contract["default"] == ["general", "vm2", "vm3"]


@pytest.mark.parametrize("mode", cluster.MODES)
def test_every_queue_has_a_consumer(mode: str) -> None:
    assert cluster.queue_problems(cluster.workers(TARGETS, mode, "main"), TARGETS) == []


def test_a_queue_without_a_consumer_is_named() -> None:
    laid_out = cluster.workers(TARGETS[:1], "celery", "main")
    (problem,) = cluster.queue_problems(laid_out, TARGETS)
    assert "vm3_queue" in problem


def test_members_of_the_two_modes() -> None:
    assert cluster.members(GROUPS, "celery") == {
        "cluster": ["main", "vm2", "vm3"],
        "airflow": ["main", "vm2", "vm3"],
        "core": ["main"],
        "naked": [],
        "provisioned": ["main", "vm2", "vm3"],
    }
    ssh = cluster.members(GROUPS, "ssh")
    assert ssh["airflow"] == ["main"]
    assert ssh["naked"] == ["vm2", "vm3"]
    assert ssh["provisioned"] == ["main"]


def test_a_target_that_is_main_too_is_not_naked() -> None:
    assert cluster.members({**GROUPS, "target_vms": ["main", "vm2"]}, "ssh")["naked"] == ["vm2"]


@pytest.mark.parametrize("mode", ["", "Celery", "kubernetes", None, 1])
def test_an_unknown_mode_is_refused_with_the_two_that_exist(mode: Any) -> None:
    (problem,) = cluster.mode_problems(mode)
    assert "'celery'" in problem
    assert "'ssh'" in problem


@pytest.mark.parametrize("tier", cluster.TIERS)
def test_an_empty_tier_is_named(tier: str) -> None:
    (problem,) = cluster.group_problems({**GROUPS, tier: []})
    assert f"children.{tier}.hosts" in problem


def test_a_group_lost_to_a_typo_shows_the_groups_that_exist() -> None:
    typo = {("schedulers" if name == "scheduler" else name): hosts for name, hosts in GROUPS.items()}
    (problem,) = cluster.group_problems(typo)
    assert "group scheduler" in problem
    assert "schedulers" in problem


@pytest.mark.parametrize("tier", cluster.SINGLE_TIERS)
def test_a_second_database_or_broker_is_refused(tier: str) -> None:
    (problem,) = cluster.group_problems({**GROUPS, tier: ["main", "vm2"]})
    assert "only one is supported" in problem


@pytest.mark.parametrize("name", ["VM2", "vm 2", "-vm", "vm2.example.org", "ü", "v" * 64])
def test_a_name_that_makes_no_queue_is_refused(name: str) -> None:
    problems = cluster.target_problems([vm(name)])
    assert any(repr(name) in problem and "ansible_host" in problem for problem in problems)


@pytest.mark.parametrize("name", ["all_vms", "file_transfer", "general"])
def test_names_of_the_general_worker_are_refused(name: str) -> None:
    (problem,) = cluster.target_problems([vm(name)])
    assert "general worker" in problem


def test_two_targets_with_one_queue_are_refused() -> None:
    (problem,) = cluster.target_problems([vm("vm2"), vm("vm3", target_queue="vm2_queue")])
    assert "vm2 and vm3 share the queue 'vm2_queue'" in problem


def test_two_hosts_with_one_address_are_refused() -> None:
    (problem,) = cluster.address_problems({"main": "192.0.2.1", "vm2": "192.0.2.2", "vm3": "192.0.2.1"})
    assert problem.startswith("main and vm3 have the same address 192.0.2.1")


def test_a_malformed_address_is_refused_and_a_name_is_not() -> None:
    (problem,) = cluster.address_problems({"main": "192.168.83.1290", "vm2": "vm2.example.org", "vm3": "fd00::3"})
    assert "192.168.83.1290" in problem


def test_a_rule_of_addresses_is_whole_or_is_none() -> None:
    assert cluster.all_ip_addresses(["192.0.2.1", "fd00::3", "192.0.2.1"]) == ["192.0.2.1", "fd00::3"]
    assert cluster.all_ip_addresses(["192.0.2.1", "db.example.org"]) == []


def test_what_systemd_would_not_understand_is_refused() -> None:
    good = {
        "celery_worker_sandbox": "commands",
        "scheduler_memory_max": "2G",
        "celery_worker_unit_settings": {"PrivateDevices": False, "ProtectHome": None},
    }
    assert cluster.unit_problems({"main": good, "vm2": {}}) == []
    bad = {
        "celery_worker_sandbox": "strict",
        "scheduler_memory_max": "half",
        "celery_worker_unit_settings": {"private_devices": False},
        "flower_unit_settings": ["LimitNOFILE=65536"],
    }
    sandbox, memory, flower, directive = cluster.unit_problems({"main": good, "vm2": bad})
    assert sandbox == "vm2: celery_worker_sandbox is 'strict'. Write one of auto, open, tasks, commands."
    assert memory.startswith("vm2: scheduler_memory_max is 'half'.")
    assert flower.startswith("vm2: flower_unit_settings is")
    assert directive.startswith("vm2: celery_worker_unit_settings has 'private_devices'")


def test_clocks() -> None:
    together = {"main": "100.5 100.0", "vm2": "103.0 101.0"}
    assert cluster.clock_problems(together, 102.0, 8) == []
    apart = {**together, "vm3": "130.0 101.0"}
    (problem,) = cluster.clock_problems(apart, 102.0, 8)
    assert "vm3 is 28 s ahead of main at the least" in problem
    assert cluster.clock_problems(apart, 125.0, 8) == [], "each may have answered late"


def test_a_version_without_a_lock_is_refused_with_those_that_have_one() -> None:
    assert cluster.lock_problems("3.3.2", ["3.3.2"]) == []
    (problem,) = cluster.lock_problems("3.9.9", ["3.3.2", "3.3.1"])
    assert "Write one of: 3.3.1, 3.3.2" in problem


def test_hosts_that_a_run_leaves_out_must_agree() -> None:
    left_out = {"vm2": "", "vm3": "3.3.2-aaa"}
    assert cluster.agreement_problems("3.3.2-aaa", left_out) == []
    (problem,) = cluster.agreement_problems("3.3.2-bbb", left_out)
    assert problem.startswith("vm3 has the environment 3.3.2-aaa")


def test_a_host_that_is_down_must_not_come_back_with_another_version() -> None:
    assert cluster.agreement_problems("3.3.2-bbb", {"vm3": "unreachable"}, "3.3.2-bbb") == []
    assert cluster.agreement_problems("3.3.2-bbb", {"vm3": "unreachable"}, "none") == []
    (problem,) = cluster.agreement_problems("3.3.2-bbb", {"vm3": "unreachable"}, "3.3.2-aaa")
    assert "would come back with 3.3.2-aaa" in problem


def test_units_follow_the_tiers_and_the_workers() -> None:
    laid_out = cluster.workers(TARGETS, "celery", "main")
    assert cluster.unit_names("vm2", GROUPS, laid_out) == ["airflow-worker-vm2"]
    assert cluster.unit_names("main", GROUPS, laid_out) == [
        "airflow-scheduler",
        "airflow-dag-processor",
        "airflow-triggerer",
        "airflow-webserver",
        "airflow-flower",
        "airflow-worker-general",
    ]


def test_the_first_worker_of_main_is_the_general_one() -> None:
    """It serves the logs of all workers there, also when main becomes a target itself."""
    laid_out = cluster.workers([vm("main"), *TARGETS], "celery", "main")
    assert [worker["name"] for worker in laid_out if worker["host"] == "main"] == ["general", "main"]


@pytest.mark.parametrize("password", ["p@ss/w%rd", "a#b?c", "ü:;,"])
def test_any_password_survives_a_url(password: str) -> None:
    parts = urllib.parse.urlsplit(f"amqp://user:{cluster.url_quoted(password)}@192.0.2.1:5672/vhost")
    assert parts.hostname == "192.0.2.1"
    assert urllib.parse.unquote(str(parts.password)) == password


@pytest.mark.parametrize(("python", "count"), [("3.9", 1), ("3.11", 0), ("3.13", 0), ("3.14", 1), ("none", 0)])
def test_python(python: str, count: int) -> None:
    assert len(cluster.environment_problems(python, 5000, 1500)) == count


def test_disk_for_an_environment() -> None:
    (problem,) = cluster.environment_problems("3.11", 100, 1500)
    assert "100 MB are free below /opt" in problem


FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "service_mgr": "systemd",
    "memtotal_mb": 4000,
}
PLATFORMS = {"Debian": ["12", "13"], "Rocky": ["9"]}


def test_a_host_that_carries_its_services() -> None:
    assert cluster.host_problems(FACTS, PLATFORMS, 2000, 5000, 1000) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"distribution_major_version": "11"}, "Debian 12 or 13, Rocky 9"),
        ({"distribution": "Ubuntu"}, "Ubuntu 12 is not supported"),
        ({"service_mgr": "sysvinit"}, "systemd is needed"),
        ({"memtotal_mb": 1000}, "1000 MB of memory, and its services need 2000 MB"),
    ],
)
def test_a_host_that_cannot(change: dict[str, Any], said: str) -> None:
    (problem,) = cluster.host_problems({**FACTS, **change}, PLATFORMS, 2000, 5000, 1000)
    assert said in problem


def test_memory_adds_up_by_tier_and_worker() -> None:
    sizes = {
        "postgresql": 1,
        "rabbitmq": 2,
        "scheduler": 4,
        "webserver": 8,
        "flower": 16,
        "worker": 32,
    }
    laid_out = cluster.workers(TARGETS, "celery", "main")
    assert cluster.memory_needed("main", GROUPS, laid_out, sizes) == 1 + 2 + 4 + 8 + 16 + 32
    assert cluster.memory_needed("vm2", GROUPS, laid_out, sizes) == 32


def test_health_names_the_unit_that_is_missing() -> None:
    healthy = {part: {"status": "healthy"} for part in ("metadatabase", "scheduler", "dag_processor", "triggerer")}
    assert cluster.unhealthy_parts(healthy) == []
    (problem,) = cluster.unhealthy_parts({**healthy, "triggerer": {"status": "unhealthy"}})
    assert problem.startswith("airflow-triggerer")
    assert "does not answer" in cluster.unhealthy_parts({})[0]


def test_consumers_are_counted_by_queue() -> None:
    contract = {"default": ["vm2", "vm3"], "vm2_queue": ["vm2"]}
    consumers = [{"queue": {"name": "default"}}, {"queue": {"name": "vm2_queue"}}]
    (problem,) = cluster.missing_consumers(consumers, contract)
    assert problem == "queue default: 1 of 2 consumers (airflow-worker-vm2, airflow-worker-vm3)."


def test_a_switch_is_announced_with_what_is_under_way() -> None:
    queues = [
        {"name": "vm2_queue", "messages_ready": 5, "messages_unacknowledged": 4},
        {"name": "default", "messages_ready": 0, "messages_unacknowledged": 1},
        {"name": "celeryev.1", "messages_ready": 9, "messages_unacknowledged": 0},
    ]
    said = cluster.switch_notice(queues, "celery", "ssh")
    assert said[0] == "This run switches the cluster from mode celery to mode ssh."
    assert "run now: 1 in default, 4 in vm2_queue." in said[1]
    assert "queued now: 5 in vm2_queue." in said[2]
    assert "none" in cluster.switch_notice([], "ssh", "celery")[1]


def test_queues_that_no_longer_belong_are_told_from_those_that_do() -> None:
    def queue(name: str, **figures: Any) -> dict[str, Any]:
        return {"name": name, "durable": True, "messages": 0, "consumers": 0, **figures}

    former = cluster.former_queues(
        [
            queue("vm2_queue"),
            queue("vm9_queue"),
            queue("vm8_queue", messages=3),
            queue("of_another_worker", consumers=1),
            queue("celery_delayed_7"),
            queue("celery"),
            queue("celeryev.1"),
            queue("celery@vm2.celery.pidbox"),
            queue("a-script", durable=False),
        ],
        {"vm2_queue": ["vm2"]},
    )
    assert former["empty"] == ["vm9_queue", "celery_delayed_7"]
    (left,) = former["left"]
    assert left.startswith("queue vm8_queue: 3 messages")


def allowed(permission: str, name: str) -> bool:
    return re.search(permission, name) is not None  # as RabbitMQ matches


def test_a_workers_login_takes_its_tasks_and_no_others() -> None:
    vm2 = {"name": "vm2", "queues": ["vm2_queue", "default"]}
    may = cluster.worker_permissions(vm2)
    own, others = "celery@vm2.celery.pidbox", ["celery@vm3.celery.pidbox", "celery@vm2Xcelery.pidbox"]
    queues = ["vm2_queue", "default", "vm3_queue", "xvm2_queue", "vm2_queue_2", "all_vms_queue"]
    exchanges = ["amq.default", "amq.fanout", "amq.direct", "amq.topic", "remote_tasks.reply", "remote_tasksXreply"]
    names = ["", own, *others, *queues, *exchanges]

    def which(permission: str) -> list[str]:
        return [name for name in names if allowed(may[permission], name)]

    assert which("configure") == [own]
    # To say how it is, and to answer; neither to queues of tasks, nor (amq.default) to any by its name, nor commands.
    assert which("write") == [own, "amq.direct", "amq.topic", "remote_tasks.reply"]
    # Commands, and no events: those tell of the others' tasks, tokens among them.
    assert which("read") == [own, "vm2_queue", "default", "amq.fanout"]


def test_a_queues_name_is_no_expression() -> None:
    may = cluster.worker_permissions({"name": "vm2", "queues": ["vm.2"]})
    assert allowed(may["read"], "vm.2")
    assert not allowed(may["read"], "vmx2")


def test_vms_have_users_and_hosts_of_main_do_not() -> None:
    laid_out = cluster.workers([vm("vm2"), vm("main")], "celery", "main")
    users = cluster.vm_broker_users(laid_out, ["main"], {"vm2": "a", "main": "b"})
    assert [(user["name"], user["password"], user["tags"]) for user in users] == [("vm2", "a", ["airflow"])]
    assert cluster.vm_broker_users(cluster.workers([vm("vm2")], "ssh", "main"), ["main"], {}) == []


def test_former_users_are_ours_alone() -> None:
    now = [
        {"name": "airflow_admin", "tags": ["administrator"]},
        {"name": "vm2", "tags": ["airflow"]},
        {"name": "vm9", "tags": ["airflow"]},
        {"name": "somebody", "tags": []},
    ]
    assert cluster.former_broker_users(now, ["vm2", "airflow_user"]) == ["vm9"]
