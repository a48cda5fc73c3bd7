"""verify's end: one table of all rows of all hosts, optionally as JSON, and a failure unless all of them passed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Plugins run on the control node, where Ansible does not put the project's module_utils on the path.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from module_utils.devmentor.checks_base import FAIL, PASS, UNKNOWN, Row
from module_utils.devmentor.checks_report import across_hosts, table


class ActionModule(ActionBase):  # type: ignore[misc]
    """Prints with the display itself: a callback would quote the table or break its lines."""

    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        answers: dict[str, dict[str, Any]] = self._task.args["answers"]
        every = {str(host) for host in self._task.args["expected"]}
        rows = [Row(**row) for answer in answers.values() for row in answer.get("rows", [])]
        silent = every & set(answers) - {row.host for row in rows}
        rows += [Row("host", host, "answers", UNKNOWN, "gave no rows") for host in sorted(silent)]
        facts = {host: answer.get("facts", {}) for host, answer in answers.items()}
        rows += across_hosts(facts, asked_all=every <= set(answers))

        Display().display(table(rows) + "\n")
        if every - set(answers):
            Display().display(f"Not asked, because of --limit: {', '.join(sorted(every - set(answers)))}\n")
        bad = [row for row in rows if row.result != PASS]
        report = self._task.args.get("report")
        if report:
            content = {"passed": not bad, "rows": [dataclasses.asdict(row) for row in rows]}
            pathlib.Path(report).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if bad or not rows:
            count = {kind: sum(row.result == kind for row in bad) for kind in (FAIL, UNKNOWN)}
            raise AnsibleActionFail(
                f"verify: of {len(rows)} checks {count[FAIL]} failed and {count[UNKNOWN]} are unknown:\n"
                + "\n".join(f"{row.host}: {row.component}, {row.check}: {row.result}: {row.evidence}" for row in bad)
            )
        return {**result, "changed": False, "msg": f"verify: all {len(rows)} checks passed"}
