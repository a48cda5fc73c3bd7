#!/usr/bin/env bash
# Runs molecule scenarios (all of them, or those named) on hosts that they share, and removes the hosts whatever happens.
# One that fails does not keep the others from running, and leaves them nothing: molecule skips its cleanup, and what it
# left running would hold their ports and data. The next one gets new hosts. The exit status is 1 then.
set -euo pipefail
cd "$(dirname "$0")/.."
scenarios=("$@")
if [ "${#scenarios[@]}" = 0 ]; then
  for folder in molecule/*/molecule.yml; do
    name=$(basename "$(dirname "$folder")")
    [ "$name" = default ] || scenarios+=("$name")
  done
fi
remove() {
  python -m lab down --inventory molecule/inventory
  molecule reset --scenario-name default > /dev/null 2>&1 || true
}
trap remove EXIT
passed=0
failed=()
for name in "${scenarios[@]}"; do
  began=$SECONDS
  echo "molecule: $name"
  # With shared_state molecule keeps one record for all scenarios: after the first one's prepare it would leave out the
  # others'. Without a record it makes the hosts (they are there: seconds) and prepares them.
  molecule reset --scenario-name "$name" > /dev/null 2>&1 || true
  if molecule test --scenario-name "$name" --destroy never; then
    passed=$((passed + 1))
    echo "molecule: $name passed in $((SECONDS - began)) s"
  else
    failed+=("$name")
    echo "molecule: $name FAILED after $((SECONDS - began)) s"
    remove
  fi
done
echo "molecule: $passed passed, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}"
[ "${#failed[@]}" = 0 ]
