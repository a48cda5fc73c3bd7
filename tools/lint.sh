#!/usr/bin/env bash
# Every static check. Each must pass; the first failure is the exit status.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf 'lint: %s\n' "$1"; shift; "$@"; }

mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
step ruff ruff check .
step mypy mypy lab tools module_utils filter_plugins action_plugins callback_plugins services/src
step yamllint yamllint --strict .
step shellcheck shellcheck "${scripts[@]}"
step "generated docs" python -m tools.docs --check
step ansible-lint ansible-lint --offline --profile production -q playbooks roles
