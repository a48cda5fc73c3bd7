#!/bin/bash
# Real PostgreSQL, PgBouncer and Valkey with the least configuration that the exporters need: TLS, and their users.
# The roles of these components have scenarios of their own.
set -euo pipefail
export PGCONNECT_TIMEOUT=5
tls=/etc/devmentor/tls
work=/var/tmp/molecule-exporters

stop() {
  systemctl stop pgbouncer.service molecule-postgres.service molecule-valkey.service 2>/dev/null || true
  rm -rf "$work"
}

start() {
  stop
  # What another scenario left running has the ports: a second PostgreSQL on 5432 ends at once.
  systemctl stop postgresql@17-main.service valkey-server.service 2>/dev/null || true
  install -d -o postgres -g postgres -m 0700 "$work" "$work/data"
  local bin=/usr/lib/postgresql/17/bin
  runuser -u postgres -- $bin/initdb --no-sync --auth=trust -D "$work/data" >/dev/null
  cat >>"$work/data/postgresql.conf" <<CONF
listen_addresses = '*'
unix_socket_directories = '$work'
ssl = on
ssl_cert_file = '$tls/host.crt'
ssl_key_file = '$tls/host.key'
fsync = off
CONF
  printf 'local all all trust\nhostssl all monitoring all scram-sha-256\n' >"$work/data/pg_hba.conf"
  systemd-run --quiet --collect --unit molecule-postgres --uid postgres --property SupplementaryGroups=devmentor-tls \
    $bin/postgres -D "$work/data"
  local deadline=$((SECONDS + 30)) problem
  until problem=$(runuser -u postgres -- psql -h "$work" -qAtc 'select 1' 2>&1 >/dev/null); do
    if ((SECONDS > deadline)) || ! systemctl is-active --quiet molecule-postgres.service; then
      echo "PostgreSQL does not answer on its socket in $work: $problem" >&2
      journalctl --unit molecule-postgres --lines 20 --no-pager --output cat >&2
      exit 1
    fi
    sleep 0.2
  done
  # Terse: an error would else quote the statement, password and all.
  runuser -u postgres -- psql -h "$work" -q -v ON_ERROR_STOP=1 -v VERBOSITY=terse <<SQL
create database devmentor;
create role monitoring login password '$POSTGRES_PASSWORD' in role pg_monitor;
SQL

  install -d -o postgres -g postgres /etc/pgbouncer
  cat >/etc/pgbouncer/pgbouncer.ini <<CONF
[databases]
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 6432
unix_socket_dir = /run/postgresql
auth_type = any
ignore_startup_parameters = extra_float_digits
CONF
  chown postgres:postgres /etc/pgbouncer/pgbouncer.ini
  systemctl restart pgbouncer.service

  (umask 077; printf 'user default off\nuser exporter on >%s ~* &* +@all\n' "$CACHE_PASSWORD" >"$work/users.acl")
  systemd-run --quiet --collect --unit molecule-valkey \
    valkey-server --port 0 --tls-port 6379 --bind 0.0.0.0 --tls-cert-file $tls/host.crt --tls-key-file $tls/host.key \
    --tls-ca-cert-file $tls/ca.crt --tls-auth-clients yes --aclfile "$work/users.acl" --save '' --dir "$work"
}

"$1"
