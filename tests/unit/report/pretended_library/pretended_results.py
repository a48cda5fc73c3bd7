"""Returns what it is given: stands for a module whose results the report understands."""

import json

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule({"result": {"type": "raw", "required": True}, "failed": {"type": "bool", "default": False}})
    result = module.params["result"]
    result = json.loads(result) if isinstance(result, str) else result
    if module.params["failed"]:
        module.fail_json(msg="not passed", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
