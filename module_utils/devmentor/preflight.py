"""What an inventory must be before any host is contacted: pure checks of groups, zones, variables and secrets.

The inventory comes in as plain data (`Platform`), every finding goes out as a `Problem`; nothing here reads a file or
a host. All checks run always, so an operator sees all problems at once. This is their table; `preflight_<subject>.py`
has the checks of each subject.
"""

from __future__ import annotations

from .platform_model import Platform
from .preflight_artifacts import check_artifacts
from .preflight_budgets import check_budgets
from .preflight_packages import check_package_versions
from .preflight_problems import Problem
from .preflight_tenants import check_tenant_limits
from .preflight_topology import (
    check_addresses,
    check_bootstrap_primary,
    check_exclusive,
    check_groups,
    check_zones,
)
from .preflight_variables import check_secrets, check_variables


def inspect(platform: Platform) -> list[Problem]:
    """Everything that can be known without contacting a host."""
    return [
        problem
        for check in (
            check_groups,
            check_exclusive,
            check_zones,
            check_bootstrap_primary,
            check_addresses,
            check_variables,
            check_budgets,
            check_tenant_limits,
            check_secrets,
            check_artifacts,
            check_package_versions,
        )
        for problem in check(platform)
    ]
