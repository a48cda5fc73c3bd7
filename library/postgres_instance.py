#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: postgres_instance
short_description: Discover, create, copy and start one PostgreSQL server
description:
  - C(state=discovered) reports what a host holds and runs, and changes nothing. The reports of all hosts together
    decide who the primary is (module_utils/devmentor/postgres_topology.py).
  - C(state=present) carries out that decision on this host. A new data directory is made beside its place and renamed
    into it when it is complete and on disk, so that an interrupted run leaves nothing that looks like data.
  - A running server is reloaded where a configuration file is newer than its last load, and never restarted; settings
    and files that wait for a restart are reported.
options:
  state: {description: What to do., type: str, choices: [discovered, present], default: present}
  version: {description: Major version., type: int, default: 17}
  cluster: {description: Debian's cluster name., type: str, default: main}
  port: {description: Port., type: int, default: 5432}
  action:
    description: The plan's word for this host.
    type: str
    choices: [keep, initdb, clone, start]
    default: keep
  primary_conninfo:
    description: Connection parameters of the primary, for a clone; also seeds C(primary_conninfo).
    type: dict
    default: {}
  slot: {description: This host's physical slot on the primary., type: str}
  slots:
    description: Physical slots to have here, one for each other host. A slot that lost its WAL is made again.
    type: list
    elements: str
    default: []
  seed:
    description: Settings written to C(postgresql.auto.conf) of a new data directory, and never after that.
    type: dict
    default: {}
  initdb_options: {description: Further options of initdb., type: list, elements: str, default: []}
  reload_on: {description: Files that a reload reads., type: list, elements: path, default: []}
  restart_on:
    description: Files that only a restart reads; reported when newer.
    type: list
    elements: path
    default: []
  timeout: {description: Seconds to wait for a server that starts and for a replica to stream., type: int, default: 120}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: See what this host holds
  postgres_instance:
    state: discovered
  register: discovered

- name: Copy the primary and follow it
  postgres_instance:
    action: clone
    primary_conninfo: {host: 192.0.2.11, user: replicator, passfile: /etc/devmentor/postgres/replication.pgpass}
    slot: db2
"""

RETURN = r"""
instance:
  description: What the host holds and runs, before any change.
  returned: success
  type: dict
  contains:
    data: {description: "absent, pristine, present or unknown.", type: str, returned: always}
    running: {description: Whether a server process runs., type: bool, returned: always}
    standby: {description: Whether it is (or would start as) a replica., type: bool, returned: always}
    system_identifier: {description: From the control file., type: str, returned: always}
    timeline: {description: The highest timeline seen., type: int, returned: always}
    error: {description: Why something is unknown., type: str, returned: always}
    seeded: {description: Names in postgresql.auto.conf., type: list, elements: str, returned: always}
actions:
  description: What was (or would be) done, with the reason.
  returned: success
  type: list
  elements: str
pending_restart:
  description: Settings and files that wait for a restart, which this module never does.
  returned: success
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.postgres import PostgresError
from ansible.module_utils.devmentor.postgres_datadir import NewData
from ansible.module_utils.devmentor.postgres_server import Server
from ansible.module_utils.devmentor.units import changed_at


class Instance:
    """Carries out the plan's word for this host, and tends what runs."""

    def __init__(self, module):
        self.module = module
        self.params = module.params
        self.server = Server(*(self.params[name] for name in ("version", "cluster", "port", "timeout")))
        self.actions = []
        self.pending = []

    def systemctl(self, *words):
        code, out, err = self.module.run_command(["systemctl", *words])
        if code != 0:
            reason = (err or out).strip()
            raise PostgresError(f"systemctl {' '.join(words)} failed with {code}: {reason}\n{self.server.log_tail()}")
        return out.strip()

    def start(self, why):
        self.actions.append(f"start {self.server.unit}: {why}")
        self.systemctl("daemon-reload")
        self.module.run_command(["systemctl", "reset-failed", self.server.unit])
        self.systemctl("start", self.server.unit)
        if self.server.process() is None:
            raise PostgresError(f"{self.server.unit} did not start.\n{self.server.log_tail()}")
        with self.server.wait_connection() as connection:
            follows = "SELECT pg_is_in_recovery() AND current_setting('primary_conninfo') <> ''"
            if self.server.row(connection, follows)[0]:
                self.wait_streaming(connection)

    def wait_streaming(self, connection):
        deadline = time.monotonic() + self.params["timeout"]
        while not self.server.rows(connection, "SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming'"):
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"the replica does not stream after {self.params['timeout']} s.\n{self.server.log_tail()}"
                )
            time.sleep(0.25)

    def tend(self, connection):
        """What a running server may need: a reload, slots; and what it waits for."""
        loaded, started = self.server.row(
            connection,
            "SELECT extract(epoch FROM pg_conf_load_time())::float8, "
            "extract(epoch FROM pg_postmaster_start_time())::float8",
        )
        newer = [path for path in self.params["reload_on"] if changed_at(path) > loaded]
        if newer:
            self.actions.append(f"reload: newer than the last load: {', '.join(newer)}")
            if not self.module.check_mode:
                self.reload(connection, loaded)
        self.refuse_bad_files(connection)
        self.slots(connection)
        self.pending = [path for path in self.params["restart_on"] if changed_at(path) > started]
        self.pending += [
            name
            for (name,) in self.server.rows(connection, "SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1")
        ]

    def reload(self, connection, loaded):
        self.server.row(connection, "SELECT pg_reload_conf()")
        deadline = time.monotonic() + 10
        while self.server.row(connection, "SELECT extract(epoch FROM pg_conf_load_time())::float8")[0] <= loaded:
            if time.monotonic() > deadline:
                raise PostgresError(f"the server did not reload its configuration.\n{self.server.log_tail()}")
            time.sleep(0.05)

    def refuse_bad_files(self, connection):
        if self.module.check_mode:
            return
        bad = self.server.rows(
            connection,
            "SELECT sourcefile, sourceline, error FROM pg_file_settings "
            "WHERE error IS NOT NULL AND error <> 'setting could not be applied' "
            "UNION ALL SELECT file_name, line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL "
            "UNION ALL SELECT file_name, line_number, error FROM pg_ident_file_mappings WHERE error IS NOT NULL",
        )
        if bad:
            listed = "; ".join(f"{path} line {line}: {error}" for path, line, error in bad)
            raise PostgresError(f"the server refuses its configuration and keeps the one before: {listed}")

    def slots(self, connection):
        have = {
            name: (active, status)
            for name, active, status in self.server.rows(
                connection,
                "SELECT slot_name, active, wal_status FROM pg_replication_slots WHERE slot_type = 'physical'",
            )
        }
        for name in self.params["slots"]:
            if have.get(name) == (False, "lost"):
                self.actions.append(f"drop slot {name}: its WAL is gone")
                if not self.module.check_mode:
                    self.server.row(connection, "SELECT pg_drop_replication_slot(%s)", (name,))
                have.pop(name)
            if name not in have:
                self.actions.append(f"create slot {name}")
                if not self.module.check_mode:
                    # Without a reserved position: on a replica it must not hold WAL back until it is used.
                    self.server.row(connection, "SELECT pg_create_physical_replication_slot(%s, false)", (name,))

    def enable(self):
        state = self.module.run_command(["systemctl", "is-enabled", self.server.unit])[1].strip()
        if state != "enabled":
            self.actions.append(f"enable {self.server.unit}: is {state or 'unknown'}")
            if not self.module.check_mode:
                self.systemctl("enable", self.server.unit)

    def present(self):
        report, action = self.server.report(), self.params["action"]
        if report["data"] == "unknown":
            raise PostgresError(report["error"])
        if report["data"] != "present":
            if action not in ("initdb", "clone"):
                raise PostgresError(f"{self.server.data} is {report['data']}, but the plan says {action}. Run again.")
            if self.module.check_mode:
                self.actions.append(f"{action}, start {self.server.unit}")
                return report
            NewData(self.server, self.params, self.actions).create(action)
        if not report["running"]:
            if action == "keep":
                raise PostgresError("the server stopped since it was discovered. Run again.")
            if self.module.check_mode:
                self.actions.append(f"start {self.server.unit}: it is stopped")
                return report
            self.start("new data" if report["data"] != "present" else "it was stopped")
        self.enable()
        with self.server.wait_connection() as connection:
            self.tend(connection)
        return report


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["discovered", "present"], "default": "present"},
            "version": {"type": "int", "default": 17},
            "cluster": {"type": "str", "default": "main"},
            "port": {"type": "int", "default": 5432},
            "action": {"type": "str", "choices": ["keep", "initdb", "clone", "start"], "default": "keep"},
            "primary_conninfo": {"type": "dict", "default": {}, "no_log": False},
            "slot": {"type": "str"},
            "slots": {"type": "list", "elements": "str", "default": []},
            "seed": {"type": "dict", "default": {}},
            "initdb_options": {"type": "list", "elements": "str", "default": []},
            "reload_on": {"type": "list", "elements": "path", "default": []},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    instance = Instance(module)
    if module.params["state"] == "discovered":
        module.exit_json(changed=False, instance=instance.server.report(), actions=[], pending_restart=[])
    try:
        report = instance.present()
    except (PostgresError, OSError) as error:
        module.fail_json(msg=f"PostgreSQL {instance.server.name}: {error}", actions=instance.actions)
    module.exit_json(
        changed=bool(instance.actions), instance=report, actions=instance.actions, pending_restart=instance.pending
    )


if __name__ == "__main__":
    main()
