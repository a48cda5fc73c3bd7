#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: service_units
short_description: All systemd units of a role, in one call
description:
  - Enables, starts, stops, masks, restarts and reloads units and waits until they answer.
  - A restart or reload is decided from state (a file that is newer than the process that read it), not from what
    changed in this run. So a run that was interrupted after writing a file is finished by the next one; handlers
    cannot do that.
options:
  units:
    description: The units, treated in this order.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Unit name with its suffix., type: str, required: true}
      state: {description: Whether it runs., type: str, choices: [started, stopped], default: started}
      enabled: {description: Whether it starts at boot; left alone where not given., type: bool}
      masked: {description: Stop it and make it impossible to start., type: bool, default: false}
      restart_on:
        description: Paths the process reads at start only. The unit file and its drop-ins count by themselves.
        type: list
        elements: path
        default: []
      reload_on: {description: Paths the process reads on reload., type: list, elements: path, default: []}
      wait_for:
        description: What must answer after every run, changed or not.
        type: dict
        suboptions:
          port: {description: TCP port that must accept., type: int}
          host: {description: Address of the port., type: str, default: 127.0.0.1}
          url: {description: URL that must answer., type: str}
          status: {description: Statuses that count as an answer., type: list, elements: int, default: [200]}
          contains: {description: Text that the answer's body must hold., type: str}
          ca: {description: CA file for the URL., type: path}
          cert: {description: Client certificate file., type: path}
          key: {description: Client key file., type: path}
          timeout: {description: Seconds to wait., type: int, default: 30}
  one_at_a_time:
    description:
      - No two hosts of the task interrupt a running unit at the same time; units that are down start side by side.
      - Hosts with nothing to do are found side by side and do not wait. Where a host fails, those after it are left as
        they are and fail with its name.
    type: bool
    default: false
  report_only:
    description: Acts on nothing and waits for nothing; says in RV(pending) what a run would do or wait for.
    type: bool
    default: false
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Start PgBouncer
  service_units:
    units:
      - name: pgbouncer.service
        enabled: true
        reload_on: [/etc/pgbouncer/pgbouncer.ini]
        wait_for: {port: 6432}
"""

RETURN = r"""
actions:
  description: What was (or would be) done per unit, with the reason.
  returned: always
  type: list
  elements: str
  sample: ["pgbouncer.service: reload (newer than the last load: /etc/pgbouncer/pgbouncer.ini)"]
pending:
  description: The same, and units that do not answer as O(units[].wait_for) wants.
  returned: with O(report_only)
  type: list
  elements: str
interrupts:
  description: Whether RV(pending) interrupts a running unit.
  returned: with O(report_only)
  type: bool
"""

import os
import socket
import ssl
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.units import SHOW_PROPERTIES, UnitError, Want, changed_at, decide, parse_show

STAMPS = "/run/devmentor/loaded"  # one empty file per reloaded unit: systemd keeps no time of the last reload


class Units:
    def __init__(self, module):
        self.module = module
        self.report = module.params["report_only"]
        self.passive = module.check_mode or self.report
        self.actions = []
        self.interrupts = False
        self.unanswered = []
        self.reloaded_daemon = False

    def systemctl(self, *words):
        return self.module.run_command(["systemctl", *words])

    def show(self, name):
        code, out, err = self.systemctl("show", "--property=" + ",".join(SHOW_PROPERTIES), name)
        if code != 0:
            raise UnitError(f"{name}: systemctl show failed with {code}: {err.strip()}")
        return parse_show(out, boot=time.time() - time.monotonic())

    def journal(self, name):
        command = ["journalctl", "--unit", name, "--lines", "20", "--no-pager", "--output", "cat"]
        out = self.module.run_command(command)[1]
        return out.strip() or "(the journal has nothing)"

    def fail(self, name, what):
        raise UnitError(f"{name}: {what}. Its last journal lines:\n{self.journal(name)}")

    def daemon_reload(self):
        if self.reloaded_daemon or self.passive:
            return
        code, _, err = self.systemctl("daemon-reload")
        if code != 0:
            raise UnitError(f"systemctl daemon-reload failed with {code}: {err.strip()}")
        self.reloaded_daemon = True

    def one(self, item):
        name = item["name"]
        have = self.show(name)
        if have.needs_daemon_reload or (have.load_state == "not-found" and not self.passive):
            self.daemon_reload()
            have = self.show(name)
        files = tuple(item["restart_on"]), tuple(item["reload_on"])
        want = Want(name, item["state"], item["enabled"], item["masked"], *files)
        stamp = os.path.join(STAMPS, name)
        times = {path: changed_at(path) for path in [*have.files, *want.restart_on, *want.reload_on]}
        applied = max(have.started, changed_at(stamp))
        try:
            actions = decide(want, have, applied, times)
        except UnitError:
            if not self.passive:
                raise
            self.actions.append(f"{name}: start (its package or file is not there yet)")
            return
        for verb, reason in actions:
            self.actions.append(f"{name}: {verb} ({reason})")
            self.interrupts |= verb not in ("start", "enable", "unmask")
            if not self.passive:
                self.act(name, verb, stamp)
        up = item["state"] == "started" and not item["masked"]
        if self.report and up and item["wait_for"] and not actions:
            problem = self.probe(item["wait_for"])
            if problem:
                self.unanswered.append(f"{name}: {problem}")
        if not self.passive and up:
            if item["wait_for"]:
                self.wait(name, item["wait_for"])
            elif actions and self.show(name).active_state not in ("active", "activating", "reloading"):
                self.fail(name, "did not stay up")

    def act(self, name, verb, stamp):
        if verb in ("start", "restart"):
            self.systemctl("reset-failed", name)
        code, _, err = self.systemctl(verb, name)
        if code != 0:
            self.fail(name, f"systemctl {verb} failed with {code}: {err.strip()}")
        if verb == "reload":
            os.makedirs(STAMPS, exist_ok=True)
            with open(stamp, "w"):
                os.utime(stamp)

    def wait(self, name, wait):
        deadline = time.monotonic() + wait["timeout"]
        while True:
            problem = self.probe(wait)
            if problem is None:
                return
            if self.show(name).active_state == "failed":
                self.fail(name, "failed")
            if time.monotonic() > deadline:
                self.fail(name, f"does not answer after {wait['timeout']} s ({problem})")
            time.sleep(0.2)

    def probe(self, wait):
        return self.probe_url(wait) if wait["url"] else self.probe_port(wait)

    @staticmethod
    def probe_port(wait):
        try:
            with socket.create_connection((wait["host"], wait["port"]), timeout=2):
                return None
        except OSError as error:
            return f"{wait['host']}:{wait['port']}: {error}"

    @staticmethod
    def probe_url(wait):
        try:
            context = None
            if wait["url"].startswith("https"):
                context = ssl.create_default_context(cafile=wait["ca"])
                if wait["cert"]:
                    context.load_cert_chain(wait["cert"], wait["key"])
            try:
                answer = urllib.request.urlopen(wait["url"], timeout=5, context=context)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                status, text = answer.status, answer.read(1 << 16).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            return f"{wait['url']}: {error}"
        if status not in wait["status"]:
            return f"{wait['url']}: status {status}: {text[:300]}"
        if wait["contains"] and wait["contains"] not in text:
            return f"{wait['url']}: {wait['contains']!r} is not in the answer: {text[:300]}"
        return None


def main():
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list", "elements": "dict", "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
                    "enabled": {"type": "bool"},
                    "masked": {"type": "bool", "default": False},
                    "restart_on": {"type": "list", "elements": "path", "default": []},
                    "reload_on": {"type": "list", "elements": "path", "default": []},
                    "wait_for": {
                        "type": "dict",
                        "required_one_of": [["port", "url"]],
                        "mutually_exclusive": [["port", "url"]],
                        "options": {
                            "port": {"type": "int"},
                            "host": {"type": "str", "default": "127.0.0.1"},
                            "url": {"type": "str"},
                            "status": {"type": "list", "elements": "int", "default": [200]},
                            "contains": {"type": "str"},
                            "ca": {"type": "path"},
                            "cert": {"type": "path"},
                            "key": {"type": "path", "no_log": False},
                            "timeout": {"type": "int", "default": 30},
                        },
                    },
                },
            },
            # The action plugin of the same name has seen to it when this runs.
            "one_at_a_time": {"type": "bool", "default": False},
            "report_only": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    units = Units(module)
    try:
        for item in module.params["units"]:
            units.one(item)
    except UnitError as error:
        module.fail_json(msg=str(error), changed=bool(units.actions) and not units.passive, actions=units.actions)
    if units.report:
        pending = units.actions + units.unanswered
        module.exit_json(changed=False, actions=[], pending=pending, interrupts=units.interrupts)
    module.exit_json(changed=bool(units.actions), actions=units.actions)


if __name__ == "__main__":
    main()
