#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pgbackrest_stanza
short_description: A pgBackRest stanza that exists, archives and holds one full backup
description:
  - Looks whether the local server is the primary; elsewhere it does nothing.
  - Makes the stanza, checks that a WAL segment reaches the store, and makes a full backup, each where it is missing.
options:
  stanza: {description: Name of the stanza., type: str, required: true}
  port: {description: Port of the local server., type: int, default: 5432}
  user: {description: Operating system user that pgBackRest runs as., type: str, default: postgres}
  timeout: {description: Seconds that stanza-create and check may take., type: int, default: 180}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Have the stanza and one full backup
  pgbackrest_stanza:
    stanza: devmentor
"""

RETURN = r"""
primary:
  description: Whether this host's server is the primary; none where no server answers (check mode only).
  returned: success
  type: bool
actions:
  description: What was (or would be) done, with the reason.
  returned: success
  type: list
  elements: str
"""

import json
import os
import pwd
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.postgres import PostgresError
from ansible.module_utils.devmentor.postgres_backup import BACKUP, plan_stanza

ASK = "SELECT pg_is_in_recovery() || ' ' || system_identifier FROM pg_control_system()"
# pgBackRest's exit status where another of its processes has the stanza's lock.
LOCK_NOT_HAD = 50
LOCK_SECONDS = 60
LOCK_PAUSE_SECONDS = 1


class Busy(PostgresError):
    """Another pgBackRest process has the lock."""


class Repository:
    def __init__(self, params):
        self.params = params

    def run(self, command, timeout=None):
        entry = pwd.getpwnam(self.params["user"])
        done = subprocess.run(
            command, user=entry.pw_uid, group=entry.pw_gid, cwd="/",
            extra_groups=os.getgrouplist(self.params["user"], entry.pw_gid),
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": entry.pw_dir},
            text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )
        if done.returncode != 0:
            text = (done.stderr.strip() + "\n" + done.stdout.strip()).strip()[-2000:]
            error = Busy if done.returncode == LOCK_NOT_HAD else PostgresError
            raise error(f"{' '.join(command)} failed with {done.returncode}: {text}")
        return done.stdout

    def pgbackrest(self, *words, timeout=None):
        """The server pushes its first segments meanwhile, with the lock that we need: it is asked for again."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return self.run(["pgbackrest", f"--stanza={self.params['stanza']}", *words], timeout)
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_PAUSE_SECONDS)

    def server(self):
        command = ["psql", "-XAtq", "-p", str(self.params["port"]), "-c", ASK, "postgres"]
        standby, identifier = self.run(command, timeout=30).split()
        return standby == "false", identifier

    def info(self):
        return json.loads(self.pgbackrest("--output=json", "info", timeout=60))


def run(module):
    repository, actions = Repository(module.params), []
    try:
        primary, identifier = repository.server()
        info = repository.info() if primary else []
    except (PostgresError, OSError, KeyError, subprocess.TimeoutExpired):
        if not module.check_mode:
            raise
        return {"changed": False, "primary": None, "actions": ["(the server or the store is not there yet)"]}
    # A refusal of the plan is one in check mode as well.
    plan = plan_stanza(info, module.params["stanza"], identifier) if primary else []
    for verb, reason in plan:
        actions.append(f"{verb}: {reason}")
        if module.check_mode:
            continue
        if verb == BACKUP:
            repository.pgbackrest("--type=full", verb)
        else:
            repository.pgbackrest(verb, timeout=module.params["timeout"])
    return {"changed": bool(actions), "primary": primary, "actions": actions}


def main():
    module = AnsibleModule(
        argument_spec={
            "stanza": {"type": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "user": {"type": "str", "default": "postgres"},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (PostgresError, OSError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=f"pgBackRest: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
