#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: health_gate
short_description: Wait until a service is shown to work, or fail
description:
  - Asks checks of many kinds in rounds until enough rounds in a row passed, too many did not, or the deadline came.
  - Every check is C(pass), C(fail) or C(unknown); what cannot be read is unknown, and only pass opens the gate.
  - A probe that hangs is cut at its timeout. Nothing is changed; what canaries write expires or is removed.
  - The action plugin of the same name adds the host's plan and secrets from inventory and roles where checks need them.
  - C(docs/health-gates.md) has the types of checks with their options.
options:
  checks:
    description: Each has C(name), C(type), optionally C(timeout_seconds), and the options of its type.
    type: list
    elements: dict
    required: true
  initial_delay_seconds: {description: Seconds before the first round., type: float, default: 0}
  period_seconds: {description: Seconds from the start of one round to that of the next., type: float, default: 5}
  timeout_seconds:
    description: Limit of one probe in seconds; a canary without its own has at least 30.
    type: float
    default: 5
  success_threshold: {description: Rounds in a row in which all checks must pass., type: int, default: 1}
  failure_threshold:
    description: Rounds in a row not passed that end the gate early; 0 waits for the deadline.
    type: int
    default: 3
  deadline_seconds: {description: Seconds after which the gate ends in any case., type: float, default: 120}
  secrets:
    description: Named passwords and keys that checks refer to in options that end in C(_from).
    type: dict
    default: {}
  tls:
    description: Paths of C(ca), C(cert) and C(key) on the host; the platform's own where it is left out.
    type: dict
    default: {}
  report_only: {description: Report a closed gate without failing., type: bool, default: false}
  plan: {description: The host's plan. The action plugin makes it., type: dict, default: {}}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: A stand-in of QWEN answers and makes a token
  health_gate:
    checks:
      - {name: unit, type: systemd, unit: qwen-surge.service, min_uptime_seconds: 5}
      - {name: ready, type: http, url: "https://10.0.0.5:8079/ready"}
      - {name: token, type: canary, of: qwen, base: "https://10.0.0.5:8079"}
    success_threshold: 2
    deadline_seconds: 180
    failure_threshold: 0
"""

RETURN = r"""
passed: {description: Whether the gate is open., returned: always, type: bool}
checks:
  description: The last round, one entry per check with name, type, result (pass, fail, unknown) and evidence.
  returned: always
  type: list
  elements: dict
timeline:
  description: Changes of a check's result with C(at) in seconds since the start, at most 200.
  returned: always
  type: list
  elements: dict
timeline_dropped: {description: Changes left out of the middle of the timeline., returned: always, type: int}
rounds: {description: Rounds asked., returned: always, type: int}
waited_s: {description: Seconds that it took., returned: always, type: float}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.gate import Gate
from ansible.module_utils.devmentor.gate_options import TIMING_SPEC, GateError, Timing
from ansible.module_utils.devmentor.gate_parse import parse_checks
from ansible.module_utils.devmentor.gate_run import job_maker, make_plan, require


def main():
    paths = {"ca": {"type": "path"}, "cert": {"type": "path"}, "key": {"type": "path", "no_log": False}}
    module = AnsibleModule(
        {
            "checks": {"type": "list", "elements": "dict", "required": True},
            **TIMING_SPEC,
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "tls": {"type": "dict", "default": {}, "options": paths},
            "report_only": {"type": "bool", "default": False},
            "plan": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        checks = parse_checks(given["checks"])
        timing = Timing(**{name: given[name] for name in TIMING_SPEC})
        plan = make_plan(given["plan"], given["secrets"], given["tls"])
        require(checks, plan, planned=bool(given["plan"]))
    except GateError as error:
        module.fail_json(msg=f"health_gate: {error}", passed=False, changed=False)
    outcome = Gate(checks, timing, job_maker(plan)).run(once=module.check_mode)
    result = {
        "changed": False,
        "passed": outcome.passed,
        "msg": outcome.message(),
        "checks": outcome.checks,
        "timeline": outcome.timeline,
        "timeline_dropped": outcome.timeline_dropped,
        "rounds": outcome.rounds,
        "waited_s": outcome.waited_s,
    }
    if outcome.passed or given["report_only"]:
        module.exit_json(**result)
    module.fail_json(**result)


if __name__ == "__main__":
    main()
