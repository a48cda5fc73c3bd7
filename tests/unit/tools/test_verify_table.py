"""The integration tests read what verify prints: as it is printed."""

from module_utils.devmentor import checks_base, checks_report
from tests.integration import verify_table

ROWS = [
    checks_base.Row("host", "lab4", "answers", "unknown", "unreachable: ssh:  connect to 10.77.0.13: no route"),
    checks_base.Row("postgres", "(all)", "one primary", "pass", "lab1"),
    checks_base.Row("monitoring", "lab1", "targets are up", "fail", "lab4:9100"),
    checks_base.Row("qdrant", "lab2", "reads a point", "pass", ""),
]


def test_the_rows_are_those_that_were_printed() -> None:
    output = (
        "TASK [Print the table] ***\n"
        + checks_report.table(ROWS)
        + "\n\nfatal: [lab1]: FAILED! =>\n    msg: |-\n        verify: of 4 checks 1 failed and 1 are unknown:\n"
        "        lab4: host, answers: unknown: unreachable: ssh:  connect to 10.77.0.13: no route\n\n"
        "PLAY RECAP ***\nlab4                       : ok=3    changed=0    unreachable=0    failed=0\n"
    )
    assert sorted(verify_table.rows(output)) == sorted(tuple(vars(row).values()) for row in ROWS)


def test_an_output_without_a_table_has_no_rows() -> None:
    assert verify_table.rows("PLAY RECAP ***\nlab4   : ok=0    changed=0    unreachable=1\n") == []
