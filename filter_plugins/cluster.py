"""What the inventory means: members, targets, workers, queues, and what is wrong with it.

Pure functions without I/O, used as filters by ``group_vars/all/topology.yml`` and by the ``preflight``
role. Hosts come in as their variables (``hostvars``), results go out as plain lists and dictionaries.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MODES = ("celery", "ssh")
TIERS = ("postgresql", "rabbitmq", "scheduler", "webserver", "flower", "target_vms")
#: Tiers that exist once: a second one would need replication, which this project does not set up.
SINGLE_TIERS = ("postgresql", "rabbitmq")
DEFAULT_QUEUE = "default"
#: Queues of the general worker in either mode.
GENERAL_QUEUES = ("all_vms_queue", "file_transfer_queue")
GENERAL_WORKER = "general"
#: Where workers send the results that remote_tasks.client waits for (remote_tasks/src/remote_tasks/replies.py).
REPLY_EXCHANGE = "remote_tasks.reply"
#: RabbitMQ's tag of the users that were made for this cluster: it gives no rights.
BROKER_TAG = "airflow"
#: How the description of a target's Airflow connection begins: by it, ours are told from a site's own.
CONNECTION_MARK = "Target VM"
#: A target's name becomes part of a queue, of a systemd unit and of a Celery node name.
TARGET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
#: How systemd holds a worker: roles/airflow/vars/main.yml. Its variables, and the words that each may have.
SANDBOXES = {
    "celery_worker_sandbox": ("auto", "open", "tasks", "commands"),
    "ssh_worker_sandbox": ("open", "tasks", "commands"),
}
MEMORY_MAXIMA = (
    "scheduler_memory_max",
    "webserver_memory_max",
    "flower_memory_max",
    "celery_worker_memory_max",
    "celery_worker_general_memory_max",
    "ssh_worker_memory_max",
)
MEMORY_MAX = re.compile(r"\d{1,2}%|100%|\d+[KMGT]|infinity")
UNIT_SETTINGS = (
    "airflow_unit_settings",
    "scheduler_unit_settings",
    "webserver_unit_settings",
    "flower_unit_settings",
    "celery_worker_unit_settings",
    "ssh_worker_unit_settings",
)
DIRECTIVE = re.compile(r"[A-Z][A-Za-z0-9]+")

#: How a value begins that stands for a secret which is yet to be made: see lookup_plugins/cluster_secret.py.
STAND_IN = "NotGenerated"

HostVars = Mapping[str, Any]
Groups = Mapping[str, Sequence[str]]


def unique(items: Iterable[str]) -> list[str]:
    """Return the items in their order, each once."""
    return list(dict.fromkeys(items))


def address(host: HostVars) -> str:
    """Return the address at which the cluster reaches a host.

    Args:
        host: The host's variables.

    Returns:
        ``ansible_host``, or the inventory name where that is not set.
    """
    return str(host.get("ansible_host") or host["inventory_hostname"])


def members(groups: Groups, mode: str) -> dict[str, list[str]]:
    """Say which hosts take part in what.

    Args:
        groups: The inventory's groups.
        mode: ``celery`` or ``ssh``.

    Returns:
        ``cluster``: every host of a tier. ``airflow``: those that Airflow is installed on.
        ``core``: those with access to the metadata database. ``naked``: targets that get no software.
        ``provisioned``: those with a certificate and a firewall.
    """

    def of(*tiers: str) -> list[str]:
        return unique(host for tier in tiers for host in groups.get(tier, ()))

    services = of("scheduler", "webserver", "flower")
    targets = of("target_vms")
    airflow = services + targets if mode == "celery" else services
    return {
        "cluster": of(*TIERS),
        "airflow": unique(airflow),
        "provisioned": unique(of("postgresql", "rabbitmq") + airflow),
        "core": of("scheduler", "webserver"),
        "naked": [host for host in targets if host not in airflow],
    }


def target(host: HostVars) -> dict[str, Any]:
    """Describe a target VM.

    Args:
        host: The target's variables. ``target_user``, ``target_queue`` and ``target_description`` may
            be set.

    Returns:
        The target's name, host, port, user (the login that commands run as), queue and description.
    """
    name = str(host["inventory_hostname"])
    return {
        "name": name,
        "host": address(host),
        "port": int(host.get("ansible_port") or 22),
        "user": str(host.get("target_user") or host.get("ansible_user") or ""),
        "queue": str(host.get("target_queue") or f"{name}_queue"),
        "description": str(host.get("target_description") or f"Target VM {name}"),
    }


def workers(
    targets: Sequence[Mapping[str, Any]],
    mode: str,
    main: str,
    ssh_workers_serve_default: bool = False,
) -> list[dict[str, Any]]:
    """Lay out the Celery workers of the cluster.

    In celery mode each target VM has a worker of its own, and they share the default queue. In ssh
    mode the workers of all targets stand on main, each with its target's queue, so that a busy or
    dead target delays no other; the default queue belongs to the general worker.

    Args:
        targets: The target VMs, as made by :func:`target`.
        mode: ``celery`` or ``ssh``.
        main: The inventory name of the host that runs the general worker.
        ssh_workers_serve_default: Whether ssh mode's target workers take untargeted tasks as well.

    Returns:
        One dictionary a worker: ``name``, ``host`` (where it runs), ``role`` (the Ansible role that
        runs it), ``unit`` (systemd), ``queues`` and ``serves_logs`` (one of each host's workers does).
    """
    on_target = mode == "celery"
    role = "celery_worker" if on_target else "ssh_worker"
    shared = [DEFAULT_QUEUE] if on_target or ssh_workers_serve_default else []
    general = list(GENERAL_QUEUES) if on_target else [DEFAULT_QUEUE, *GENERAL_QUEUES]
    laid_out = [_worker(GENERAL_WORKER, main, "celery_worker", general)]
    for vm in targets:
        name = str(vm["name"])
        laid_out.append(_worker(name, name if on_target else main, role, [vm["queue"], *shared]))
    served: set[str] = set()
    for worker in laid_out:
        worker["serves_logs"] = worker["host"] not in served
        served.add(worker["host"])
    return laid_out


def _worker(name: str, host: str, role: str, queues: list[str]) -> dict[str, Any]:
    return {"name": name, "host": host, "role": role, "unit": f"airflow-worker-{name}", "queues": queues}


def targets_seen_from(
    targets: Sequence[Mapping[str, Any]],
    host: str,
    main: str,
    key_file: str,
    known_hosts_file: str,
) -> list[dict[str, Any]]:
    """Say how a host reaches each target VM: the entries of its targets.json.

    A host is reached from itself without a connection. Main has the key pair, and so reaches all
    others over SSH in both modes; any other host knows only their queues.

    Args:
        targets: The target VMs, as made by :func:`target`.
        host: The inventory name of the host that looks.
        main: The inventory name of the host that has the key pair.
        key_file: The private key's path on main.
        known_hosts_file: The path of the pinned host keys on main.

    Returns:
        The targets, each with its ``transport`` and what that needs.
    """
    over_ssh = {"transport": "ssh", "key_file": key_file, "known_hosts_file": known_hosts_file}

    def way(name: str) -> dict[str, str]:
        if name == host:
            return {"transport": "local"}
        return over_ssh if host == main else {"transport": "none"}

    return [{**vm, **way(str(vm["name"]))} for vm in targets]


def host_keys(facts: Mapping[str, Any]) -> dict[str, str]:
    """Take a host's SSH host keys from its facts.

    Args:
        facts: Ansible's facts of the host, with the subset ``ssh_pub_keys``.

    Returns:
        Type of key (``ssh-ed25519``) to the key in base64; nothing when no facts were gathered.
    """
    found = {}
    for algorithm in ("ed25519", "ecdsa", "rsa"):
        name = f"ssh_host_key_{algorithm}_public"
        if name in facts:
            found[str(facts[f"{name}_keytype"])] = str(facts[name])
    return found


def pinned_keys(known_hosts: str, vm: Mapping[str, Any]) -> dict[str, str]:
    """Take a target's keys from a known_hosts file.

    Args:
        known_hosts: The file's text.
        vm: The target VM, as made by :func:`target`.

    Returns:
        Type of key to the key in base64; nothing when none is pinned.
    """
    lines = (line.split() for line in known_hosts.splitlines() if not line.startswith("#"))
    return {words[1]: words[2] for words in lines if len(words) >= 3 and words[0] == _known_as(vm)}


def _known_as(vm: Mapping[str, Any]) -> str:
    return str(vm["host"]) if int(vm["port"]) == 22 else f"[{vm['host']}]:{vm['port']}"


def known_hosts(targets: Sequence[Mapping[str, Any]], seen: Mapping[str, Mapping[str, str]], before: str) -> str:
    """Write the known_hosts file that pins the targets' host keys.

    Args:
        targets: The target VMs, as made by :func:`target`.
        seen: Name of a target to its keys, as made by :func:`host_keys`; a target that this run
            leaves out keeps what is pinned.
        before: The present file's text.

    Returns:
        The new file's text, without lines of hosts that are no targets.
    """
    lines = [
        f"{_known_as(vm)} {kind} {key}\n"
        for vm in targets
        for kind, key in sorted((seen.get(str(vm["name"])) or pinned_keys(before, vm)).items())
    ]
    return "".join(lines)


def host_key_problems(vm: Mapping[str, Any], seen: Mapping[str, str], known_hosts: str) -> list[str]:
    """Say when a target's host key is another one than the one that is pinned.

    Args:
        vm: The target VM, as made by :func:`target`.
        seen: Its keys now, as made by :func:`host_keys`.
        known_hosts: The text of the file that pins them.

    Returns:
        One sentence, or nothing.
    """
    pinned = pinned_keys(known_hosts, vm)
    changed = sorted(kind for kind, key in pinned.items() if kind in seen and seen[kind] != key)
    if not changed:
        return []
    shown = ", ".join(
        f"{kind} {_fingerprint(pinned[kind])} is pinned, {_fingerprint(seen[kind])} is there now" for kind in changed
    )
    return [
        f"{vm['name']} ({vm['host']}): its host key has changed: {shown}. If the VM was rebuilt, accept it by name:"
        f" ansible-playbook playbooks/accept_host_key.yml -e vm={vm['name']}. If not, somebody else answers there."
    ]


def connections(
    targets: Sequence[Mapping[str, Any]],
    seen: Mapping[str, Mapping[str, str]],
    key_file: str,
    silence: int,
) -> list[dict[str, Any]]:
    """Describe an Airflow connection for each target VM, for the stock SSH and SFTP operators.

    Args:
        targets: The target VMs, as made by :func:`target`.
        seen: Name of a target to its keys, as made by :func:`host_keys`; a target that this run
            leaves out has no description, and its connection stays as it is.
        key_file: The private key's path on main.
        silence: Seconds without output after which the SSHOperator gives a command up. (The
            operator's own default is 10.)

    Returns:
        Connections in the words of Airflow's API, named as the targets are.
    """
    described: list[dict[str, Any]] = []
    for vm in targets:
        name, keys = str(vm["name"]), seen.get(str(vm["name"])) or {}
        if not keys:
            described.append({"connection_id": name})
            continue
        kind = next(iter(keys))
        extra = {
            "key_file": key_file,
            "host_key": f"{kind} {keys[kind]}",
            "look_for_keys": "false",
            "cmd_timeout": silence,
        }
        login = {"conn_type": "ssh", "host": str(vm["host"]), "port": int(vm["port"]), "login": str(vm["user"])}
        text = f"{CONNECTION_MARK} {name}, written by Ansible: what is changed here does not stay."
        described.append({"connection_id": name, "description": text, "extra": extra, **login})
    return described


def _fingerprint(key: str) -> str:
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def queues(laid_out: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Turn workers into the queue contract.

    Args:
        laid_out: The workers, as made by :func:`workers`.

    Returns:
        Queue name to the names of the workers that consume it.
    """
    contract: defaultdict[str, list[str]] = defaultdict(list)
    for worker in laid_out:
        for queue in worker["queues"]:
            contract[queue].append(worker["name"])
    return dict(sorted(contract.items()))


def worker_permissions(worker: Mapping[str, Any]) -> dict[str, str]:
    """Say what a worker's own login at the broker may do: take its tasks, and tell how it is.

    It declares and deletes nothing but the queue of commands to itself, writes to no queue of tasks, and cannot
    command other workers or hear of their tasks. The exchanges are those of roles/airflow/files/cluster_celery.py.

    Args:
        worker: As made by :func:`workers`.

    Returns:
        RabbitMQ's permissions: ``configure``, ``write`` and ``read``.
    """
    commands = f"celery@{worker['name']}.celery.pidbox"
    return {
        "configure": _names(commands),
        "write": _names(commands, "amq.direct", "amq.topic", REPLY_EXCHANGE),
        "read": _names(commands, "amq.fanout", *worker["queues"]),
    }


def _names(*names: str) -> str:
    return f"^({'|'.join(re.escape(name) for name in names)})$"


def vm_broker_users(
    laid_out: Sequence[Mapping[str, Any]],
    core: Sequence[str],
    passwords: Mapping[str, str],
    logins: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Describe the broker's users for workers on hosts that are nothing but target VMs.

    Args:
        laid_out: The workers, as made by :func:`workers`.
        core: Hosts whose processes have the cluster's own login.
        passwords: Name of a VM to its password.
        logins: Name of a VM to the name that it logs in with, if that is not its own.

    Returns:
        Users for the role ``rabbitmq``.
    """
    return [
        {
            "name": (logins or {}).get(worker["name"], worker["name"]),
            "password": passwords[worker["name"]],
            "tags": [BROKER_TAG],
            "permissions": worker_permissions(worker),
        }
        for worker in laid_out
        if worker["host"] not in core
    ]


def vm_secrets(vms: Sequence[str]) -> dict[str, dict[str, str]]:
    """Describe the secrets that each target VM has for itself.

    Args:
        vms: Names of the VMs.

    Returns:
        Entries for the catalogue of secrets. The login that takes turns with a VM's name is no VM's name.
    """
    return {f"broker_password_{vm}": {"rotation": "broker", "login": vm, "suffix": ".2"} for vm in vms}


def host_secrets(groups: Groups) -> dict[str, dict[str, str]]:
    """Describe the secrets that each host has for itself: the private key of its certificate.

    Args:
        groups: The inventory's groups.

    Returns:
        Entries for the catalogue of secrets.
    """
    hosts = unique(host for tier in TIERS for host in groups.get(tier, ()))
    return {f"tls_key_{host}": {"rotation": "certificates", "kind": "p256"} for host in hosts}


def former_broker_users(users_now: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> list[str]:
    """Say which of the broker's users were made for this cluster and no longer belong to it.

    Args:
        users_now: What RabbitMQ's management API answers to ``/api/users``.
        wanted: Names of those that belong.

    Returns:
        Names.
    """
    return sorted(str(user["name"]) for user in users_now if BROKER_TAG in user["tags"] and user["name"] not in wanted)


def mode_problems(mode: Any) -> list[str]:
    """Say what is wrong with a mode; nothing, when it is one of the two that exist."""
    if mode in MODES:
        return []
    return [f"mode: {mode!r} is not a mode. Write 'celery' (a worker on each VM) or 'ssh' (all on main)."]


def group_problems(groups: Groups) -> list[str]:
    """Say which tiers lack a host, or have more than they can.

    Args:
        groups: The inventory's groups.

    Returns:
        One sentence a problem, each with what to write instead.
    """
    known = sorted(set(groups) - {"all", "ungrouped"})
    problems = [
        f"group {tier}: no host in it. Put a host under children.{tier}.hosts in the inventory"
        f" (groups with hosts now: {', '.join(g for g in known if groups[g]) or 'none'})."
        for tier in TIERS
        if not groups.get(tier)
    ]
    problems += [
        f"group {tier}: {len(groups[tier])} hosts ({', '.join(groups[tier])}), and only one is supported."
        f" Keep one of them under children.{tier}.hosts."
        for tier in SINGLE_TIERS
        if len(groups.get(tier, ())) > 1
    ]
    return problems


def target_problems(targets: Sequence[Mapping[str, Any]], services_user: str = "airflow") -> list[str]:
    """Say which targets have a name, a login or a queue that cannot work.

    Args:
        targets: The target VMs, as made by :func:`target`.
        services_user: The system user of Airflow's services.

    Returns:
        One sentence a problem, each with what to write instead.
    """
    problems = []
    reserved = {DEFAULT_QUEUE, *GENERAL_QUEUES}
    for vm in targets:
        name, queue = str(vm["name"]), str(vm["queue"])
        if not TARGET_NAME.fullmatch(name):
            problems.append(
                f"target_vms, host {name!r}: the name becomes a queue and a systemd unit. Use 1 to 63 of a-z, 0-9,"
                " '-' and '_', beginning with a letter or digit (for instance vm2), and the address in ansible_host."
            )
        if not vm["user"] or vm["user"] == services_user:
            problems.append(
                f"target_vms, host {name!r}: tasks for it would run as {vm['user']!r}. Write ansible_user in the"
                f" inventory, or target_user for another login ({services_user!r} belongs to Airflow's services)."
            )
        if name == GENERAL_WORKER:
            problems.append(f"target_vms, host {name!r}: that is the general worker's name. Rename the host.")
        if not QUEUE_NAME.fullmatch(queue):
            problems.append(
                f"target_vms, host {name!r}: queue {queue!r} is not a valid queue name. Remove target_queue"
                " (the queue is then made from the name), or use letters, digits, '-', '_' and '.'."
            )
        elif queue in reserved:
            problems.append(
                f"target_vms, host {name!r}: queue {queue!r} belongs to the general worker."
                " Rename the host, or set its target_queue to a queue of its own."
            )
    by_queue = _shared((str(vm["queue"]), str(vm["name"])) for vm in targets)
    problems += [
        f"target_vms: {' and '.join(names)} share the queue {queue!r}. Give each a queue of its own: remove"
        " target_queue from all but one."
        for queue, names in by_queue.items()
    ]
    return problems


def address_problems(addresses: Mapping[str, str]) -> list[str]:
    """Say which hosts share an address, or have one that is malformed.

    Args:
        addresses: Inventory name to address.

    Returns:
        One sentence a problem, each with what to write instead.
    """
    problems = [
        f"{' and '.join(names)} have the same address {shared}. Correct ansible_host of all but one"
        " (one host in several groups is written with the same name each time)."
        for shared, names in _shared((addr, name) for name, addr in addresses.items()).items()
    ]
    for name, addr in addresses.items():
        if re.fullmatch(r"[0-9.]+", addr) and not _is_ip(addr):
            problems.append(f"{name}: {addr!r} is not an address. Correct its ansible_host, e.g. 192.168.83.129.")
    return problems


def _shared(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key, name in pairs:
        found[key].append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def all_ip_addresses(addresses: Iterable[str]) -> list[str]:
    """Return the addresses for a rule that knows no names.

    Args:
        addresses: IP addresses or names.

    Returns:
        The addresses, each once; none when there is a name among them, since a rule without it would shut out a host.
    """
    found = unique(addresses)
    return found if all(map(_is_ip, found)) else []


def unit_problems(hosts: Mapping[str, HostVars]) -> list[str]:
    """Say which choices about units systemd would not understand: it only logs them, and leaves the unit open.

    Args:
        hosts: Host to its variables.

    Returns:
        A sentence for each problem, with what to write instead.
    """
    problems: list[str] = []
    for name, own in hosts.items():
        for variable, known in SANDBOXES.items():
            if variable in own and own[variable] not in known:
                problems.append(f"{name}: {variable} is '{own[variable]}'. Write one of {', '.join(known)}.")
        for variable in MEMORY_MAXIMA:
            if variable in own and not MEMORY_MAX.fullmatch(str(own[variable])):
                problems.append(
                    f"{name}: {variable} is '{own[variable]}'. Write a part of the memory, like 50%, or 2G."
                )
        for variable in UNIT_SETTINGS:
            settings = own.get(variable) or {}
            if not isinstance(settings, Mapping):
                problems.append(
                    f"{name}: {variable} is '{settings}'. Write directives by name, like LimitNOFILE: 65536."
                )
                continue
            problems.extend(
                f"{name}: {variable} has '{directive}', which is no directive of systemd's: see systemd.exec(5)."
                for directive in settings
                if not DIRECTIVE.fullmatch(str(directive))
            )
    return problems


def queue_problems(laid_out: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which queue of the contract would have no consumer.

    Args:
        laid_out: The workers, as made by :func:`workers`.
        targets: The target VMs, as made by :func:`target`.

    Returns:
        One sentence a problem.
    """
    consumed = queues(laid_out)
    promised = [DEFAULT_QUEUE, *GENERAL_QUEUES, *(str(vm["queue"]) for vm in targets)]
    return [f"queue {queue!r}: no worker would consume it." for queue in promised if queue not in consumed]


def clock_problems(readings: Mapping[str, str], until: float, tolerance: float) -> list[str]:
    """Say which hosts' clocks stand too far from the others'.

    Task tokens and log requests carry times that the other side checks within seconds.

    Args:
        readings: Inventory name to two clocks, as seconds since 1970 with a blank between them: the host's, and
            the control node's when it began to ask.
        until: The control node's clock when all had answered. Each host's was read between these two moments: on a
            busy machine they may be far apart, and what is not certain is no problem.
        tolerance: The largest difference between two hosts, in seconds.

    Returns:
        One sentence, or nothing.
    """
    clocks = {host: [float(clock) for clock in reading.split()] for host, reading in readings.items()}
    at_least = {host: here - until for host, (here, _asked) in clocks.items()}
    at_most = {host: here - asked for host, (here, asked) in clocks.items()}
    slowest, fastest = min(at_most, key=at_most.__getitem__), max(at_least, key=at_least.__getitem__)
    apart = at_least[fastest] - at_most[slowest]
    if apart <= tolerance:
        return []
    return [
        f"clocks: {fastest} is {apart:.0f} s ahead of {slowest} at the least, and {tolerance:g} s are allowed,"
        " since tokens expire. Set the time on both (for instance: install chrony, then 'chronyc makestep')."
    ]


def secret_problems(
    here: Mapping[str, str], there: Sequence[str], missing: Sequence[str], host: str, directory: str
) -> list[str]:
    """Say which secrets of a host are others than those of this control node.

    One of another length was damaged there, and is put right.

    Args:
        here: The host's secrets as this control node would write them: name of the file to its text.
        there: What the host has, a line a file: name, login (``-`` for none), length and SHA-256 of the secret.
        missing: Names of secrets that this control node has yet to make.
        host: Inventory name.
        directory: Where this control node keeps its secrets.

    Returns:
        One sentence a cause, with what to do, and without a secret or a hash.
    """
    others, unknown = [], []
    for line in there:
        name, login, length, digest = line.split()
        if name not in here:
            continue
        own_login, secret = _login_and_secret(name, here[name])
        turns = {login, own_login} in ({own, f"{own}{end}"} for own in (login, own_login) for end in ("_2", ".2"))
        if login != own_login and not turns:
            continue  # another role's, of an earlier release
        if name in missing or STAND_IN in secret:
            unknown.append(name)
        elif turns or (len(secret) == int(length) and hashlib.sha256(secret.encode()).hexdigest() != digest):
            others.append(name)
    fix = (
        f" If another control node (or another copy of the project) runs this cluster, copy what it keeps in"
        f" {directory} to here. If this one is right, or you changed `secrets` in the inventory, accept it:"
        " -e preflight_accept_secrets=true; tasks that run meanwhile can fail."
    )
    problems = []
    if unknown:
        problems.append(f"{host} has {', '.join(unknown)}, and this control node has no such secret yet.{fix}")
    if others:
        problems.append(f"{host} has another {', another '.join(others)} than this control node.{fix}")
    return problems


def _login_and_secret(name: str, text: str) -> tuple[str, str]:
    if name == "flower_basic_auth":
        login, _, secret = text.partition(":")
        return login, secret
    url = re.match(r"[^/]*://([^:]*):([^@]*)@", text)
    return (url[1], url[2]) if url else ("-", text.rstrip("\n"))


def lock_problems(version: str, locks: Sequence[str]) -> list[str]:
    """Say when a version of Airflow cannot be installed for want of a lock.

    Args:
        version: The version that is asked for.
        locks: Versions that have a lock file.

    Returns:
        One sentence, or nothing.
    """
    if version in locks:
        return []
    return [f"airflow_version: {version!r} has no lock. Write one of: {', '.join(sorted(locks))}."]


def agreement_problems(wanted: str, left_out: Mapping[str, str], present: str = "none") -> list[str]:
    """Say why a run would leave hosts on different environments.

    Args:
        wanted: The environment that this run installs (version and digest of its lock).
        left_out: Airflow hosts that this run leaves out (``--limit``), and the environment that each
            has now; '' for none, ``unreachable`` when it cannot be asked.
        present: The environment of a host in this run, as it is now; ``none`` for a bare one.

    Returns:
        One sentence a problem.
    """
    unseen = [host for host, has in left_out.items() if has == "unreachable"]
    if unseen and present not in ("none", wanted):
        return [
            f"{', '.join(unseen)} cannot be asked, stays out of this run, and would come back with {present} when the"
            f" others have {wanted}. Bring it back first, or take it out of the inventory."
        ]
    return [
        f"{host} has the environment {has} and stays out of this run, which installs {wanted}."
        " Main and workers must agree: run without --limit."
        for host, has in left_out.items()
        if has not in ("", "unreachable", wanted)
    ]


def environment_problems(
    python: str, free_mb: int, needed_mb: int, oldest: str = "3.11", newest: str = "3.13"
) -> list[str]:
    """Say why Airflow's environment cannot be made on a host.

    Args:
        python: Version of the host's Python, e.g. ``3.11``; ``none`` when it is yet to be installed.
        free_mb: Free disk where environments are kept, in MB.
        needed_mb: Free disk that is needed, in MB.
        oldest: The oldest version of Python that every lock supports.
        newest: The newest.

    Returns:
        One sentence a problem, each with what to do instead.
    """
    problems = []
    if python != "none" and not _version(oldest) <= _version(python) <= _version(newest):
        problems.append(
            f"Python is {python}, and Airflow's lock needs {oldest} to {newest}. Use a supported release of"
            " the distribution (Debian 12 or 13, EL 9)."
        )
    if free_mb < needed_mb:
        problems.append(f"{free_mb} MB are free below /opt, and an environment needs {needed_mb} MB. Free some.")
    return problems


def host_problems(
    facts: Mapping[str, Any],
    platforms: Mapping[str, Sequence[str]],
    memory_mb: int,
    free_mb: int,
    free_needed_mb: int,
) -> list[str]:
    """Say why a host cannot carry its services.

    Args:
        facts: Ansible's facts of the host.
        platforms: Supported distributions and their major versions.
        memory_mb: Memory that its services need, in MB.
        free_mb: Free disk below /var, in MB.
        free_needed_mb: Free disk that is needed there, in MB.

    Returns:
        One sentence a problem, each with what to do instead.
    """
    problems = []
    name, version = str(facts["distribution"]), str(facts["distribution_major_version"])
    if version not in platforms.get(name, ()):
        known = ", ".join(f"{distribution} {' or '.join(of)}" for distribution, of in platforms.items())
        problems.append(f"{name} {version} is not supported. Use one of: {known}.")
    if facts.get("service_mgr") != "systemd":
        problems.append(f"its service manager is {facts.get('service_mgr')}, and systemd is needed.")
    if int(facts["memtotal_mb"]) < memory_mb:
        problems.append(
            f"it has {facts['memtotal_mb']} MB of memory, and its services need {memory_mb} MB."
            " Give it more, or move a tier to another host in the inventory."
        )
    if free_mb < free_needed_mb:
        problems.append(f"{free_mb} MB are free below /var, and {free_needed_mb} MB are needed. Free some.")
    return problems


def unit_names(host: str, groups: Groups, laid_out: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the units of Airflow that a host should have.

    Args:
        host: Inventory name.
        groups: The inventory's groups.
        laid_out: The workers, as made by :func:`workers`.

    Returns:
        Names of units, without ``.service``.
    """
    of_tier = {
        "scheduler": ["airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"],
        "webserver": ["airflow-webserver"],
        "flower": ["airflow-flower"],
    }
    units = [unit for tier, names in of_tier.items() if host in groups.get(tier, ()) for unit in names]
    return [*units, *(str(worker["unit"]) for worker in laid_out if worker["host"] == host)]


def url_quoted(text: str) -> str:
    """Quote a login's part of a URL, so that a password of any characters arrives as it is.

    Args:
        text: User name or password.

    Returns:
        The text with every reserved character, ``/`` and ``%`` among them, percent-encoded.
    """
    return urllib.parse.quote(str(text), safe="")


def unhealthy_parts(health: Mapping[str, Any]) -> list[str]:
    """Say which daemons are not healthy.

    Args:
        health: What the API server answers to ``/api/v2/monitor/health``; ``{}`` for no answer.

    Returns:
        One sentence a daemon that gave no fresh sign of life.
    """
    if not health:
        return ["airflow-webserver: the API server does not answer."]
    parts = {
        "metadatabase": "postgresql",
        "scheduler": "airflow-scheduler",
        "dag_processor": "airflow-dag-processor",
        "triggerer": "airflow-triggerer",
    }
    return [
        f"{unit}: {part} is {(health.get(part) or {}).get('status') or 'absent'}."
        for part, unit in parts.items()
        if (health.get(part) or {}).get("status") != "healthy"
    ]


def missing_consumers(consumers: Sequence[Mapping[str, Any]], contract: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which queues have fewer consumers than workers that should consume them.

    Args:
        consumers: What RabbitMQ's management API answers to ``/api/consumers/VHOST``.
        contract: Queue to the names of its workers, as made by :func:`queues`.

    Returns:
        One sentence a queue.
    """
    present: defaultdict[str, int] = defaultdict(int)
    for consumer in consumers:
        present[str(consumer["queue"]["name"])] += 1
    return [
        f"queue {queue}: {present[queue]} of {len(names)} consumers"
        f" ({', '.join(f'airflow-worker-{name}' for name in names)})."
        for queue, names in contract.items()
        if present[queue] < len(names)
    ]


def former_queues(
    queues_now: Sequence[Mapping[str, Any]], contract: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Say which queues of tasks no longer belong to the cluster.

    A queue that somebody consumes is somebody's, and stays.

    Args:
        queues_now: What RabbitMQ's management API answers to ``/api/queues/VHOST``.
        contract: Queue to the names of its workers, as made by :func:`queues`.

    Returns:
        ``empty``: names of those that can be removed. ``left``: sentences about those with messages.
    """
    # The queues for delayed tasks are empty and nobody's: workers of earlier versions made them.
    internal = re.compile(r"celery(?!_delayed_)|amq\.|.*pidbox|.*\.reply\.")
    former = [
        queue
        for queue in queues_now
        if queue["name"] not in contract
        and queue.get("durable")
        and not queue.get("consumers")
        and not internal.match(str(queue["name"]))
    ]
    return {
        "empty": [str(queue["name"]) for queue in former if not queue.get("messages")],
        "left": [
            f"queue {queue['name']}: {queue['messages']} messages, and no worker in this layout. Give it one"
            " (a target VM of that queue), or remove it: rabbitmqctl delete_queue --vhost airflow_host NAME."
            for queue in former
            if queue.get("messages")
        ],
    }


def switch_notice(queues_now: Sequence[Mapping[str, Any]], before: str, after: str) -> list[str]:
    """Say what a switch of the mode finds under way.

    Args:
        queues_now: RabbitMQ's list of queues with ``name``, ``messages_ready`` and
            ``messages_unacknowledged``.
        before: The mode that the cluster is in.
        after: The mode that it gets.

    Returns:
        Lines for a person.
    """

    def counted(figure: str) -> str:
        found = [(str(queue["name"]), int(queue[figure])) for queue in queues_now if int(queue[figure])]
        shown = [f"{count} in {name}" for name, count in sorted(found) if not name.startswith(("celery", "amq."))]
        return ", ".join(shown) or "none"

    return [
        f"This run switches the cluster from mode {before} to mode {after}.",
        f"Tasks that run now: {counted('messages_unacknowledged')}. They are waited for.",
        f"Tasks that are queued now: {counted('messages_ready')}. They run after the switch.",
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def memory_needed(
    host: str, groups: Groups, laid_out: Sequence[Mapping[str, Any]], megabytes: Mapping[str, int]
) -> int:
    """Add up what the services of a host need.

    Args:
        host: Inventory name.
        groups: The inventory's groups.
        laid_out: The workers, as made by :func:`workers`.
        megabytes: Tier (and ``worker``) to the memory that one of it needs, in MB.

    Returns:
        Memory in MB.
    """
    tiers = sum(size for tier, size in megabytes.items() if host in groups.get(tier, ()) and tier != "target_vms")
    return tiers + sum(megabytes["worker"] for worker in laid_out if worker["host"] == host)


#: Bridges and pairs that container engines and hypervisors make: no other host is seen from their addresses.
_INNER_INTERFACES = re.compile(r"lo|docker|br-[0-9a-f]{12}|veth|virbr|vnet|cni|flannel|cali|podman|lxcbr|lxdbr")


def seen_at(host: HostVars) -> dict[str, Any]:
    """Say where a host's traffic comes from: its address in the inventory, and all that are its own.

    Args:
        host: The host's variables, with Ansible's facts where it is part of the run.

    Returns:
        ``name``, ``addresses`` (none, when ``ansible_host`` is a name and there are no facts) and ``seen``: whether
        there are.
    """
    facts = host.get("ansible_facts") or {}
    written = [address(host)] if _is_ip(address(host)) else []
    own: list[str] = []
    for name in facts.get("interfaces", ()):
        if _INNER_INTERFACES.match(str(name)):
            continue
        interface = facts.get(str(name).replace("-", "_")) or facts.get(name) or {}
        first = interface.get("ipv4")
        of_both = [*([first] if first else []), *interface.get("ipv4_secondaries", ()), *interface.get("ipv6", ())]
        own += [str(entry["address"]) for entry in of_both if entry.get("address")]
    usable = [text for text in own if not _is_local(text)]
    return {"name": str(host["inventory_hostname"]), "addresses": unique([*written, *usable]), "seen": bool(usable)}


def _is_local(text: str) -> bool:
    found = ipaddress.ip_address(text)
    return found.is_loopback or found.is_link_local


def open_ports(
    host: str,
    groups: Groups,
    laid_out: Sequence[Mapping[str, Any]],
    leaving: Sequence[str] = (),
    *,
    ssh_ports: Sequence[int] = (22,),
    ssh_from: str | Sequence[str] = "any",
    ui_from: str | Sequence[str] = "any",
    log_port: int = 8793,
) -> list[dict[str, Any]]:
    """Say which ports of a host are open to whom; what comes from the host itself needs no leave.

    Args:
        host: Inventory name of the host.
        groups: The inventory's groups.
        laid_out: The workers, as made by :func:`workers`.
        leaving: Hosts whose workers still finish what they run.
        ssh_ports: Where its sshd listens.
        ssh_from: Who may log in: ``any``, or addresses and networks. Main may in any case, where it sends commands.
        ui_from: Who may see the UI and Flower: ``any``, or addresses and networks.
        log_port: The port of the workers' log server.

    Returns:
        ``port``, ``from`` (``any``, or names of hosts, addresses and networks; nobody, when it is empty) and ``why``.
    """

    def here(tier: str) -> bool:
        return host in groups.get(tier, ())

    def rule(port: int, why: str, *sources: str | Sequence[str]) -> dict[str, Any]:
        if "any" in sources:
            return {"port": port, "from": "any", "why": why}
        named = unique(name for source in sources for name in source)
        return {"port": port, "from": [name for name in named if name != host], "why": why}

    schedulers, webservers = groups.get("scheduler", ()), groups.get("webserver", ())
    at_work = unique([*(str(worker["host"]) for worker in laid_out), *leaving])
    rules = [rule(port, "SSH", ssh_from, schedulers if here("target_vms") else ()) for port in dict.fromkeys(ssh_ports)]
    if here("postgresql"):
        rules.append(rule(5432, "PostgreSQL, for those that log in to it", schedulers, webservers, at_work))
    if here("rabbitmq"):
        clients = (schedulers, webservers, groups.get("flower", ()), at_work)
        rules.append(rule(5671, "RabbitMQ, for hosts with Airflow", *clients))
        # They listen on the loopback address: this holds where something else has bound them.
        rules += [rule(port, "RabbitMQ's own") for port in (4369, 15672, 25672)]
    if here("webserver"):
        rules.append(rule(8080, "UI, REST API and execution API", ui_from, at_work))
    if here("flower"):
        rules.append(rule(5555, "Flower", ui_from))
    if host in (worker["host"] for worker in laid_out):
        rules.append(rule(log_port, "task logs, for the API server", webservers))
    if here("scheduler"):
        rules.append(rule(8794, "the triggerer's logs, for the API server", webservers))
    return rules


class FilterModule:
    """The functions above as Ansible filters, under the prefix ``cluster_``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return filter names and functions."""
        exported = (
            address,
            members,
            target,
            workers,
            targets_seen_from,
            host_keys,
            pinned_keys,
            known_hosts,
            host_key_problems,
            connections,
            queues,
            vm_broker_users,
            vm_secrets,
            host_secrets,
            former_broker_users,
            mode_problems,
            group_problems,
            target_problems,
            address_problems,
            all_ip_addresses,
            unit_problems,
            queue_problems,
            clock_problems,
            secret_problems,
            lock_problems,
            agreement_problems,
            environment_problems,
            host_problems,
            unit_names,
            url_quoted,
            unhealthy_parts,
            missing_consumers,
            memory_needed,
            former_queues,
            switch_notice,
            seen_at,
            open_ports,
        )
        return {f"cluster_{function.__name__}": function for function in exported}
