#!/usr/bin/python
# Copyright: DevMentor platform developers
# Apache License 2.0 (see LICENSE)

DOCUMENTATION = r"""
module: haproxy_server
short_description: Drain a server of this host's HAProxy, take it out, put it back, and wait until that is true
description:
  - Speaks HAProxy's runtime interface. What it sets lives through a reload and not through a restart.
  - Acts on the backend's other entries for the same address and port as well (the gateway's servers of last resort),
    because they lead to the same process. Their sessions count.
  - A drain or a wait is refused while a worker of an earlier reload still serves, because that one knows of no drain.
  - An answer of HAProxy that cannot be read is a failure.
options:
  backend: {description: The backend., type: str, required: true}
  server: {description: The server., type: str, required: true}
  state:
    description:
      - V(drain) gives it nothing new, V(maint) neither that nor probes, V(ready) its share. Left as it is where not
        given.
      - A server that is stopped for longer belongs in V(maint), since a drained one is probed and reported as down.
    type: str
    choices: [drain, ready, maint]
  weight: {description: "Its weight, left as it is where not given. Range: 0..256.", type: int}
  healthy:
    description:
      - Takes it for healthy at once instead of after all the good probes that it takes otherwise, then waits until a
        probe found it so. Only for a server that was asked whether it is ready.
    type: bool
    default: false
  wait_sessions: {description: Wait until no session and no queue is left., type: bool, default: false}
  deadline_seconds:
    description: Longest wait for sessions, and longest wait for health. Then it fails and says what is left.
    type: float
    default: 60
  old_worker_seconds:
    description: Longest wait for a worker of an earlier reload before anything is changed. 0 refuses at once.
    type: float
    default: 0
  socket: {description: The worker's socket., type: path, default: /run/haproxy/admin.sock}
  master_socket: {description: The master's socket., type: path, default: /run/haproxy-master.sock}
attributes:
  check_mode: {support: full, details: Says in RV(orders) and RV(waits) what a run would do.}
  diff_mode: {support: full}
author: DevMentor platform developers
"""

EXAMPLES = r"""
- name: Give an instance nothing new and wait until it has finished what it began
  haproxy_server: {backend: qwen, server: h1, state: drain, wait_sessions: true, deadline_seconds: 300}

- name: Put it back
  haproxy_server: {backend: qwen, server: h1, state: ready, healthy: true}
"""

RETURN = r"""
before: &server
  description: The server as it was; C(sessions) and C(queue) with those of its other C(entries).
  type: dict
  returned: once it could be read
  sample: {state: ready, weight: 1, status: UP, check: L7OK, sessions: 3, queue: 0, entries: [h1, h1-last]}
after: {description: The same at the end., type: dict, returned: once it could be read}
orders:
  description: Commands that were (or would be) given.
  type: list
  elements: str
  returned: once it could be read
waits: {description: What a run would wait for., type: list, elements: str, returned: in check mode}
progress:
  description: Sessions and queue whenever they changed during the wait, with the seconds since the beginning.
  type: list
  elements: dict
  returned: once it could be read
  sample: [{at_s: 0.1, sessions: 3, queue: 0, old_workers: 0}, {at_s: 4.2, sessions: 0, queue: 0, old_workers: 0}]
waited_s: {description: Seconds that it took., type: float, returned: once it could be read}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.devmentor.haproxy_control import Control, ControlError, HaproxyError, Runtime, Wish


def main():
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "required": True},
            "server": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drain", "ready", "maint"]},
            "weight": {"type": "int"},
            "healthy": {"type": "bool", "default": False},
            "wait_sessions": {"type": "bool", "default": False},
            "deadline_seconds": {"type": "float", "default": 60},
            "old_worker_seconds": {"type": "float", "default": 0},
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "master_socket": {"type": "path", "default": "/run/haproxy-master.sock"},
        },
        supports_check_mode=True,
    )
    given = dict(module.params)
    worker, master = Runtime(given.pop("socket")), Runtime(given.pop("master_socket"))
    wish = Wish(**given)
    if wish.weight is not None and not 0 <= wish.weight <= 256:
        module.fail_json(msg=f"weight: {wish.weight} is outside of 0..256")
    if wish.healthy and wish.state not in (None, "ready"):
        module.fail_json(msg=f"healthy: a server in state {wish.state} gets nothing in any case. Set state: ready.")
    orders = []
    try:
        control = Control(worker, master, wish)
        orders = control.orders
        result = control.preview() if module.check_mode else control.run()
    except HaproxyError as error:
        module.fail_json(msg=str(error), changed=bool(orders), orders=orders)
    except ControlError as error:
        module.fail_json(msg=str(error), **error.facts)
    module.exit_json(diff={"before": result["before"], "after": result["after"]}, **result)


if __name__ == "__main__":
    main()
