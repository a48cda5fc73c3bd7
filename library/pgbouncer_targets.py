#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: pgbouncer_targets
short_description: Seed the servers that PgBouncer's databases lead to
description:
  - Where O(path) is missing, asks every PostgreSQL server whether it is the primary, and writes the file.
  - Where it is there, does nothing at all; failover owns it, and a re-run must not undo a failover.
options:
  path: {description: The file that pgbouncer.ini includes., type: path, required: true}
  hosts: {description: Addresses of all PostgreSQL servers., type: list, elements: str, required: true}
  port: {description: Their port., type: int, default: 5432}
  database: {description: The application's database; names the entries., type: str, required: true}
  user: {description: Role to ask as., type: str, required: true}
  password: {description: Its password., type: str, required: true}
  ca: {description: CA of the servers' certificates., type: path, required: true}
  cert: {description: Client certificate., type: path, required: true}
  key: {description: Client key., type: path, required: true}
  owner: {description: Owner and group of the file., type: str, default: postgres}
  timeout: {description: Seconds to wait for exactly one primary., type: int, default: 30}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Seed the targets
  pgbouncer_targets:
    path: /etc/pgbouncer/targets.ini
    hosts: [192.0.2.11, 192.0.2.12]
    database: devmentor
    user: pgbouncer_auth
    password: "{{ vault_pgbouncer_auth_password }}"
    ca: /etc/devmentor/tls/ca.crt
    cert: /etc/devmentor/tls/host.crt
    key: /etc/devmentor/tls/host.key
"""

RETURN = r"""
primary:
  description: The primary that was written, where the file was missing.
  returned: when changed and not in check mode
  type: str
"""

import os
import pwd
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.devmentor.postgres import PostgresError
from ansible.module_utils.devmentor.postgres_targets import choose
from ansible.module_utils.devmentor_ha.textfiles import targets

try:
    import psycopg2
except ImportError:
    psycopg2 = None


def ask(params, address):
    """True in recovery, False a primary, or why it did not answer."""
    try:
        connection = psycopg2.connect(
            host=address, port=params["port"], dbname=params["database"], user=params["user"],
            password=params["password"], sslmode="verify-full", sslrootcert=params["ca"], sslcert=params["cert"],
            sslkey=params["key"], connect_timeout=3, application_name="ansible pgbouncer_targets",
        )
    except psycopg2.OperationalError as error:
        return str(error).strip().splitlines()[-1]
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            return cursor.fetchone()[0]
    except psycopg2.Error as error:
        return str(error).strip()
    finally:
        connection.close()


def discover(params):
    if psycopg2 is None:
        raise PostgresError(missing_required_lib("psycopg2"))
    deadline = time.monotonic() + params["timeout"]
    while True:
        try:
            return choose({address: ask(params, address) for address in params["hosts"]})
        except PostgresError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1)


def write(path, content, owner):
    entry = pwd.getpwnam(owner)
    handle, staged = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".targets-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chown(staged, entry.pw_uid, entry.pw_gid)
        os.chmod(staged, 0o640)
        os.link(staged, path)  # not a rename: a file that failover wrote in the meantime stays
    except FileExistsError:
        return False
    finally:
        os.unlink(staged)
    return True


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "hosts": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "database": {"type": "str", "required": True},
            "user": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "ca": {"type": "path", "required": True},
            "cert": {"type": "path", "required": True},
            "key": {"type": "path", "required": True, "no_log": False},
            "owner": {"type": "str", "default": "postgres"},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    if os.path.exists(params["path"]):
        module.exit_json(changed=False)
    if module.check_mode:
        module.exit_json(changed=True, diff={"before": "", "after": "(seeded from the primary found then)\n"})
    try:
        primary, replicas = discover(params)
        content = targets(params["database"], params["port"], primary, replicas)
        changed = write(params["path"], content, params["owner"])
    except (PostgresError, OSError, KeyError) as error:
        module.fail_json(msg=f"{params['path']}: {error}")
    module.exit_json(changed=changed, primary=primary, diff={"before": "", "after": content})


if __name__ == "__main__":
    main()
