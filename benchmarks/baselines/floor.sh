#!/usr/bin/env bash
# The floor that site.yml is held against: the same cluster on bare Debian VMs, set up by hand over SSH, as fast as a
# script can that is written for these hosts and these files alone. benchmarks/site.py runs it; it is no way to set
# up Airflow: nothing is checked or refused, nothing is kept of what was there before, and a second run fails.
#
#   floor.sh take DIRECTORY HOST...     keep what site.yml has written on these hosts (with its secrets: mode 0700)
#   floor.sh install DIRECTORY HOST...  from bare hosts until all is healthy; the first one is main
#
# Everything that can be lies ready before: configuration, units, secrets and certificates as they are to be, SQL for
# roles and databases, the broker's definitions, the list of packages. All hosts are at work at a time, each by one
# script, and on each the packages and Airflow's environment at a time. No package starts a service before it has its
# configuration, and each daemon starts as soon as it can.
#
# By environment: FLOOR_SSH_CONFIG, the SSH client's configuration; for `install` also FLOOR_UV, the uv program, and
# FLOOR_PASSWORD_FILE, the password of the broker's administrator.
set -euo pipefail

self=${BASH_SOURCE[0]:-}          # none when it comes by standard input
vhost=airflow_host
place=/root/floor               # on a host

on() {
  local host=$1
  shift
  ssh -F "${FLOOR_SSH_CONFIG}" -o ControlMaster=auto -o ControlPersist=60 -o LogLevel=ERROR "${host}" "$@"
}

note() { printf '[%6.2f] %s: %s\n' "$(elapsed "${EPOCHREALTIME}" "${began}")" "${HOSTNAME}" "$*"; }

# Seconds between two times, the later one first.
elapsed() {
  local microseconds=$((${1/[.,]/} - ${2/[.,]/}))
  printf '%d.%06d' $((microseconds / 1000000)) $((microseconds % 1000000))
}

# It may not enter root's directories.
as_postgres() { (cd / && exec runuser -u postgres -- "$@"); }

# --- take: on a host that site.yml has made ------------------------------------------------------

# Writes a tar file to the standard output.
take_host() {
  local work path
  local -a ours=()
  work=$(mktemp -d)
  # shellcheck disable=SC2064  # the place that it is now
  trap "rm -rf '${work}'" EXIT
  cd /
  for path in etc/airflow etc/systemd/system/airflow-*.service etc/sudoers.d/airflow etc/tmpfiles.d/airflow.conf \
    usr/local/bin/{airflow,airflow-python,remote-tasks} etc/firewalld/policies/airflow.xml opt/airflow/dags; do
    [[ ! -e ${path} ]] || ours+=("${path}")
  done
  tar --create --file "${work}/airflow.tar" --exclude etc/airflow/ssh "${ours[@]}"
  readlink opt/airflow/current > "${work}/environment"
  basename --suffix .service --multiple etc/systemd/system/airflow-*.service > "${work}/units"
  sort --unique var/lib/airflow-baseline/*/came > "${work}/packages"
  sed -n 's/ ssh-ed25519 .* airflow@.*//p' "$(getent passwd "${SUDO_USER}" | cut -d : -f 6)/.ssh/authorized_keys" \
    > "${work}/key_options" 2> /dev/null || :
  if [[ -d etc/rabbitmq ]]; then take_services "${work}"; fi
  tar --create --directory "${work}" .
}

take_services() {
  local work=$1
  tar --create --file "${work}/services.tar" etc/postgresql/*/main/{conf.d/airflow.conf,tls,pg_hba.conf} \
    etc/rabbitmq/{rabbitmq.conf,enabled_plugins,inetrc,rabbitmq-env.conf,tls} etc/systemd/system/epmd.socket.d
  rabbitmqctl --quiet export_definitions - > "${work}/definitions.json"
  rabbitmqctl --quiet list_queues --vhost "${vhost}" --formatter json name consumers > "${work}/consumers.json"
  {
    as_postgres pg_dumpall --roles-only | sed '/ROLE postgres[ ;]/d'
    as_postgres pg_dump --create --schema-only --exclude-schema '*' airflow_db
    as_postgres pg_dump --create --schema-only airflow_results_db
  } > "${work}/databases.sql"
  {
    as_postgres pg_dump --data-only --column-inserts --table ab_user --table ab_user_id_seq \
      --table connection --table connection_id_seq airflow_db
    cat <<'SQL'
INSERT INTO public.ab_user_role (id, user_id, role_id)
SELECT nextval('public.ab_user_role_id_seq'), u.id, r.id
FROM public.ab_user u, public.ab_role r WHERE r.name = 'Admin';
SQL
  } > "${work}/accounts.sql"
}

take() {
  local directory=$1 host
  shift
  umask 077
  for host in "$@"; do
    mkdir -p "${directory}/${host}"
    on "${host}" 'sudo bash -s take_host' < "${self}" | tar --extract --directory "${directory}/${host}"
  done
}

# --- install: on the control node ------------------------------------------------------------------

# remote_tasks as a wheel, by the locked hatchling; hosts wait for it long after it is there.
build_wheel() {
  local project=$1 place_here=$2
  "${FLOOR_UV}" run --quiet --no-project --no-python-downloads --no-build \
    --with-requirements "${project}/roles/airflow/files/installer.txt" \
    --directory "${project}/remote_tasks" python -m hatchling build -t wheel -d "${place_here}" \
    > "${place_here}/../wheel.log" 2>&1 || { cat "${place_here}/../wheel.log" >&2; return 1; }
}

install() {
  local directory=$1 project work host pid
  local -a hosts pids=()
  shift
  hosts=("$@")
  umask 077
  project=$(cd "$(dirname "${self}")/../.." && pwd -P)
  work=$(mktemp -d)
  # Whoever called waits for the output of all of them.
  # shellcheck disable=SC2064  # the place that it is now
  trap "jobs -p | xargs --no-run-if-empty kill 2> /dev/null; rm -rf '${work}'" EXIT
  mkdir "${work}/common" "${work}/wheel"
  cp "${self}" "${work}/common/floor.sh"
  cp "${FLOOR_UV}" "${work}/common/uv"
  cp "${project}"/roles/airflow/files/locks/*.txt "${work}/common/"
  ssh-keygen -q -t ed25519 -N '' -C "airflow@${hosts[0]}" -f "${work}/id_ed25519"
  build_wheel "${project}" "${work}/wheel" &
  pids+=($!)
  for host in "${hosts[@]}"; do
    cp -r "${directory}/${host}" "${work}/"
    cp "${work}/common/"* "${work}/id_ed25519.pub" "${work}/${host}/"
  done
  cp "${work}/id_ed25519" "${FLOOR_PASSWORD_FILE}" "${work}/${hosts[0]}/"
  sed -n 's/^ *UserKnownHostsFile "*\([^"]*\)"*$/\1/p' "${FLOOR_SSH_CONFIG}" | xargs cat > "${work}/${hosts[0]}/known_hosts"
  printf '%s\n' "${hosts[@]:1}" > "${work}/${hosts[0]}/targets"
  mv "${work}/${hosts[0]}/$(basename "${FLOOR_PASSWORD_FILE}")" "${work}/${hosts[0]}/broker_password"
  for host in "${hosts[@]}"; do
    tar --create --directory "${work}/${host}" . |
      on "${host}" "sudo bash -c 'mkdir -m 0700 ${place} && cd ${place} && tar -x && exec bash floor.sh host'" &
    pids+=($!)
  done
  wait "${pids[0]}"
  for host in "${hosts[@]}"; do
    tar --create --directory "${work}" wheel |
      on "${host}" "sudo bash -c 'until [ -e ${place}/floor.sh ]; do sleep 0.1; done; tar -x -C ${place}'" &
    pids+=($!)
  done
  for pid in "${pids[@]:1}"; do wait "${pid}"; done
}

# --- install: on a bare host -----------------------------------------------------------------------

# Airflow's environment, by uv from the lock.
make_environment() {
  local environment
  local -a locks=(./*.txt)
  environment=/opt/airflow/$(< environment)
  ./uv venv --quiet --no-python-downloads --python /usr/bin/python3 "${environment}"
  ./uv pip sync --quiet --require-hashes --no-build --compile-bytecode --python "${environment}/bin/python" \
    "${locks[-1]}"
  note "environment"
  until compgen -G 'wheel/*.whl' > /dev/null; do sleep 0.1; done
  ./uv pip install --quiet --no-index --no-deps --no-cache --compile-bytecode --python "${environment}/bin/python" \
    wheel/*.whl
  ln -s "$(< environment)" /opt/airflow/current
}

install_packages() {
  local -a packages
  mapfile -t packages < packages
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 0755 /usr/sbin/policy-rc.d
  apt-get -qq -o Acquire::Languages=none update
  apt-get -qq -y -o Dpkg::Options::=--force-unsafe-io -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 install \
    --no-install-recommends "${packages[@]}" > apt.log 2>&1 || { cat apt.log >&2; return 1; }
  rm /usr/sbin/policy-rc.d
  note "packages"
}

# Roles and databases.
start_postgresql() {
  systemctl start postgresql
  as_postgres psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 < databases.sql > /dev/null
  note "PostgreSQL"
}

# The definitions that it reads when it starts hold passwords as hashes.
start_rabbitmq() {
  install_file definitions.json /etc/rabbitmq/definitions.json root:rabbitmq 0640
  echo 'load_definitions = /etc/rabbitmq/definitions.json' >> /etc/rabbitmq/rabbitmq.conf
  systemctl start epmd.socket rabbitmq-server
  note "RabbitMQ"
}

install_file() {
  cp "$1" "$2"
  chown "$3" "$2"
  chmod "$4" "$2"
}

# The key pair with which main reaches the target VMs.
introduce() {
  local home
  if [[ -e id_ed25519 ]]; then
    mkdir -m 0755 /etc/airflow/ssh
    install_file id_ed25519 /etc/airflow/ssh/id_ed25519 airflow:root 0400
    install_file id_ed25519.pub /etc/airflow/ssh/id_ed25519.pub airflow:root 0644
    install_file known_hosts /etc/airflow/ssh/known_hosts root:root 0644
  elif [[ -s key_options ]]; then
    home=$(getent passwd "${SUDO_USER}" | cut -d : -f 6)
    [[ -d ${home}/.ssh ]] || mkdir -m 0700 "${home}/.ssh"
    printf '%s %s\n' "$(< key_options)" "$(< id_ed25519.pub)" >> "${home}/.ssh/authorized_keys"
    chmod 0600 "${home}/.ssh/authorized_keys"
    chown -R "${SUDO_USER}:" "${home}/.ssh"
  fi
}

# The UI's administrator and the connections to the target VMs, as soon as the API server has made the roles.
set_accounts() {
  local question="SELECT 1 FROM ab_role WHERE name = 'Admin'"
  until [[ $(as_postgres psql --tuples-only --no-align --command "${question}" airflow_db) == 1 ]]; do
    sleep 0.25
  done
  as_postgres psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 airflow_db < accounts.sql > /dev/null
  note "accounts"
}

# As site.yml's role health: what the API server says, each queue's consumers, and whether main reaches the targets.
wait_for_health() {
  local -a targets
  /usr/bin/python3 - <<'PYTHON'
import base64, configparser, json, pathlib, ssl, time, urllib.request

config = configparser.ConfigParser(interpolation=None)
config.read("/etc/airflow/airflow.cfg")
api = config["core"]["execution_api_server_url"].removesuffix("execution/") + "api/v2/monitor/health"
trust = ssl.create_default_context(cafile="/etc/airflow/tls/ca.pem")
login = base64.b64encode(b"airflow_admin:" + pathlib.Path("broker_password").read_bytes().strip()).decode()
wanted = {queue["name"] for queue in json.loads(pathlib.Path("definitions.json").read_text())["queues"]}
before = json.loads(pathlib.Path("consumers.json").read_text())
consumers = {queue["name"]: queue["consumers"] for queue in before if queue["name"] in wanted}


def ask(url, **headers):
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    try:
        return json.load(opener.open(urllib.request.Request(url, headers=headers), timeout=5))
    except OSError:
        return None


def healthy():
    parts = ask(api) or {}
    return len(parts) >= 4 and all(part["status"] == "healthy" for part in parts.values())


def consumed():
    found = ask("http://127.0.0.1:15672/api/consumers/airflow_host", Authorization=f"Basic {login}") or []
    counts = {}
    for consumer in found:
        counts[consumer["queue"]["name"]] = counts.get(consumer["queue"]["name"], 0) + 1
    return all(counts.get(queue, 0) >= count for queue, count in consumers.items())


for question in (healthy, consumed):
    end = time.monotonic() + 180
    while not question():
        if time.monotonic() > end:
            raise SystemExit(f"not healthy after 180 s: {question.__name__}")
        time.sleep(0.25)
PYTHON
  note "healthy"
  mapfile -t targets < targets
  /usr/local/bin/remote-tasks status "${targets[@]}" > /dev/null
  note "targets reached"
}

# As root in the directory that holds what was sent.
host() {
  local environment broker database firewall api accounts
  local -a units early=() late=()
  set -a
  # shellcheck source=/dev/null  # proxies, certificates and the package index of the site, if there are any
  [[ ! -e /etc/environment ]] || . /etc/environment
  set +a
  export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
  trap 'jobs -p | xargs --no-run-if-empty kill 2> /dev/null' EXIT
  began=${EPOCHREALTIME}
  umask 022
  useradd --system --user-group --home-dir /var/lib/airflow --no-create-home --shell /usr/sbin/nologin airflow
  mkdir -p /opt/airflow
  tar --extract --preserve-permissions --directory / --file airflow.tar
  chmod 0755 /opt/airflow
  mkdir -m 0750 /var/lib/airflow /var/log/airflow
  chown airflow:airflow /var/lib/airflow /var/log/airflow
  introduce
  make_environment &
  environment=$!
  install_packages
  [[ ! -e services.tar ]] || tar --extract --preserve-permissions --directory / --file services.tar
  mapfile -t units < units
  systemctl daemon-reload
  systemctl --quiet enable "${units[@]}"
  systemctl start firewalld &
  firewall=$!
  if [[ -e services.tar ]]; then
    start_postgresql &
    database=$!
    start_rabbitmq &
    broker=$!
    wait "${environment}"
    wait "${broker}"
    # Workers and Flower need the broker alone.
    for unit in "${units[@]}"; do
      if [[ ${unit} == *-worker-* || ${unit} == *-flower ]]; then early+=("${unit}"); else late+=("${unit}"); fi
    done
    systemctl start "${early[@]}"
    wait "${database}"
    /usr/local/bin/airflow db migrate > migrate.log 2>&1 || { tail -n 20 migrate.log >&2; return 1; }
    note "migrated"
    systemctl start "${late[@]}"
    set_accounts &
    accounts=$!
    wait "${firewall}"
    wait_for_health
    wait "${accounts}"
  else
    wait "${environment}"
    wait "${firewall}"
    # Until main's broker answers, a worker would only try in vain, longer and longer.
    api=$(sed -n 's/^execution_api_server_url = https:\/\/\(.*\):[0-9]*\/.*$/\1/p' /etc/airflow/airflow.cfg)
    until (: < "/dev/tcp/${api}/5671") 2> /dev/null; do sleep 0.2; done
    systemctl start "${units[@]}"
    note "started"
  fi
  cd /
  rm -r "${place}"
}

command=$1
shift
case ${command} in
  take | install | take_host | host) "${command}" "$@" ;;
  *)
    printf 'floor.sh: no command %s\n' "${command}" >&2
    exit 1
    ;;
esac
