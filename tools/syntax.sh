#!/usr/bin/env bash
# --syntax-check of every playbook against every inventory, as many at once as there are cores.
set -euo pipefail
cd "$(dirname "$0")/.."
check() {
  ansible-playbook -i "$1" --syntax-check "$2" >/dev/null || {
    echo "syntax: $2 fails against $1" >&2
    return 255 # xargs begins no more
  }
}
export -f check
pairs=()
for inventory in inventories/*/; do
  for playbook in playbooks/*.yml; do
    pairs+=("$inventory" "$playbook")
  done
done
# shellcheck disable=SC2016 # the inner shell's arguments
printf '%s\0' "${pairs[@]}" | xargs -0 -n 2 -P "$(nproc)" bash -c 'check "$@"' check
echo "syntax: $((${#pairs[@]} / 2)) passed, 0 failed"
