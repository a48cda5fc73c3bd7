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
      state:
        description:
          - Whether it runs. C(as_is) leaves it running or stopped and only has systemd read its files, which then act
            from the next start on.
        type: str
        choices: [started, stopped, as_is]
        default: started
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
      - No two hosts of the task interrupt a running unit at the same time; units that are down start side by side,
        before that.
      - Hosts with nothing to do are found side by side and do not wait. Where a host fails, those that would interrupt
        something after it are left as they are and fail with its name.
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

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.unit_control import UNITS, Units
from ansible.module_utils.devmentor.units import UnitError


def main():
    module = AnsibleModule(
        argument_spec={
            "units": {**UNITS, "required": True},
            # The action plugin of the same name has seen to it when this runs.
            "one_at_a_time": {"type": "bool", "default": False},
            "report_only": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    units = Units(module, report=module.params["report_only"])
    try:
        units.apply(module.params["units"])
    except UnitError as error:
        module.fail_json(msg=str(error), changed=bool(units.actions) and not units.passive, actions=units.actions)
    if units.report:
        module.exit_json(changed=False, actions=[], pending=units.pending, interrupts=units.interrupts)
    module.exit_json(changed=bool(units.actions), actions=units.actions)


if __name__ == "__main__":
    main()
