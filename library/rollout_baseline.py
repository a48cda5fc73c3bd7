#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: rollout_baseline
short_description: Compare what clients see with what they saw before a rolling update
description:
  - Runs on a monitoring host and asks its Prometheus for requests, errors and the 95th percentile of the response time.
  - O(action=take) measures everything over the last O(window_seconds). O(action=compare) waits until as many seconds
    have passed, measures what judges O(tier), and fails unless that passes or there is too little traffic to say.
  - The window is at least three scrapes long. See docs/decisions/0073-rollout-baseline.md.
options:
  action: {description: What to do., type: str, choices: [take, compare], required: true}
  url: {description: Prometheus' URL., type: str, required: true}
  tls:
    description: Paths of C(ca), C(cert) and C(key) on the host.
    type: dict
    default: {}
  tier: {description: Whose turn it was. Needed to compare., type: str}
  baseline: {description: The RV(measured) that O(action=take) returned. Needed to compare., type: dict}
  window_seconds: {description: Seconds to look at., type: float, default: 120}
  wait: {description: Let the window pass before comparing., type: bool, default: true}
  min_requests: {description: Below that there is too little traffic to pass., type: float, default: 20}
  min_errors: {description: Fewer errors never fail., type: float, default: 2}
  max_error_ratio_increase:
    description: By how much errors may grow, as a ratio of requests (0..1).
    type: float
    default: 0.001
  max_p95_factor: {description: How many times the p95 from before is too slow., type: float, default: 2}
  p95_floor_seconds: {description: A p95 up to here is never too slow., type: float, default: 0.05}
  queries:
    description:
      - Replaces or adds measures, each C(requests), C(errors) and optionally C(p95), PromQL of one sample.
        C($window) stands for the range. The measures there are are in C(module_utils/devmentor/baseline.py).
    type: dict
    default: {}
  tiers:
    description: Replaces or adds tiers, each with the list of measures that judge it.
    type: dict
    default: {}
  timeout_seconds: {description: Limit of one query., type: float, default: 10}
  report_only: {description: Say the verdict without failing., type: bool, default: false}
attributes:
  check_mode: {support: full, details: It changes nothing in any mode. Check mode does not wait.}
  diff_mode: {support: none}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Measure what clients see before
  rollout_baseline:
    action: take
    url: https://10.0.0.9:9090
    tls: {ca: /etc/devmentor/tls/ca.crt, cert: /etc/devmentor/tls/host.crt, key: /etc/devmentor/tls/host.key}
  register: before

- name: Compare with what clients saw before
  rollout_baseline:
    action: compare
    url: https://10.0.0.9:9090
    tls: {ca: /etc/devmentor/tls/ca.crt, cert: /etc/devmentor/tls/host.crt, key: /etc/devmentor/tls/host.key}
    tier: qwen
    baseline: "{{ before.measured }}"
    window_seconds: 60
"""

RETURN = r"""
result: {description: "pass, fail, unknown or too_little_traffic.", type: str, returned: always}
evidence: {description: The numbers in words., type: str, returned: always}
measured:
  description:
    - Of each measure C(requests), C(errors), C(error_ratio) (0..1), C(p95_seconds) (null if it has none) and
      C(unknown) (why it could not be read, or empty).
  type: dict
  returned: when Prometheus answered
verdicts: {description: Of each measure of the tier result and evidence., type: dict, returned: when compared}
window_seconds: {description: Seconds that were looked at., type: int, returned: when Prometheus answered}
waited_s: {description: Seconds waited before looking., type: int, returned: when Prometheus answered}
"""

import dataclasses
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor import baseline
from ansible.module_utils.devmentor.checks_base import PASS, UNKNOWN, Unanswered

REMEDY = "Remedy: see whether Prometheus and its targets are up (playbooks/verify.yml), and look at the dashboards."


def take(given, queries, get):
    window = baseline.window_of(given["window_seconds"], get)
    measured = {name: baseline.measure(get, measure, window) for name, measure in sorted(queries.items())}
    unknown = any(each.unknown for each in measured.values())
    evidence = "; ".join(f"{name}: {each.text()}" for name, each in measured.items())
    return window, 0, measured, baseline.Verdict(UNKNOWN if unknown else PASS, evidence), {}


def compare(given, queries, get, wait):
    names = baseline.measures_of(given["tier"], given["tiers"], queries)
    before = {name: baseline.restored(given["baseline"], name) for name in names}
    limits = baseline.Limits(**{field.name: given[field.name] for field in dataclasses.fields(baseline.Limits)})
    window = baseline.window_of(given["window_seconds"], get)
    if wait:
        time.sleep(window)
    measured = {name: baseline.measure(get, queries[name], window) for name in names}
    verdicts = {
        name: baseline.judge(before[name], measured[name], limits, timed="p95" in queries[name]) for name in names
    }
    return window, window if wait else 0, measured, baseline.overall(verdicts), verdicts


def main():
    paths = {"ca": {"type": "path"}, "cert": {"type": "path"}, "key": {"type": "path", "no_log": False}}
    module = AnsibleModule(
        {
            "action": {"type": "str", "choices": ["take", "compare"], "required": True},
            "url": {"type": "str", "required": True},
            "tls": {"type": "dict", "default": {}, "options": paths},
            "tier": {"type": "str"},
            "baseline": {"type": "dict"},
            "window_seconds": {"type": "float", "default": 120},
            "wait": {"type": "bool", "default": True},
            "min_requests": {"type": "float", "default": 20},
            "min_errors": {"type": "float", "default": 2},
            "max_error_ratio_increase": {"type": "float", "default": 0.001},
            "max_p95_factor": {"type": "float", "default": 2},
            "p95_floor_seconds": {"type": "float", "default": 0.05},
            "queries": {"type": "dict", "default": {}},
            "tiers": {"type": "dict", "default": {}},
            "timeout_seconds": {"type": "float", "default": 10},
            "report_only": {"type": "bool", "default": False},
        },
        required_if=[("action", "compare", ["tier", "baseline"])],
        supports_check_mode=True,
    )
    given = module.params
    tls = {name: path for name, path in (given["tls"] or {}).items() if path}
    get = baseline.prometheus(given["url"], tls, given["timeout_seconds"])
    result = {"changed": False}
    try:
        queries = baseline.merged(given["queries"])
        if given["action"] == "take":
            window, waited, measured, verdict, verdicts = take(given, queries, get)
        else:
            wait = given["wait"] and not module.check_mode
            window, waited, measured, verdict, verdicts = compare(given, queries, get, wait)
        result.update(
            measured={name: dataclasses.asdict(each) for name, each in measured.items()},
            verdicts={name: dataclasses.asdict(each) for name, each in verdicts.items()},
            window_seconds=window,
            waited_s=waited,
        )
    except baseline.BaselineError as error:
        module.fail_json(msg=f"rollout_baseline: {error}", **result)
    except Unanswered as error:
        verdict = baseline.Verdict(UNKNOWN, str(error))
    result.update(result=verdict.result, evidence=verdict.evidence)
    if given["report_only"] or verdict.result in (PASS, baseline.TOO_LITTLE_TRAFFIC):
        module.exit_json(**result)
    what = given["tier"] or "before the roll"
    module.fail_json(msg=f"What clients see ({what}): {verdict.result}. {verdict.evidence}. {REMEDY}", **result)


if __name__ == "__main__":
    main()
