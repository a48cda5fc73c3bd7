#!/usr/bin/env bash
# Runs molecule scenarios (all of them, or those named) on hosts that they share, and removes the hosts whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."
scenarios=("$@")
if [ "${#scenarios[@]}" = 0 ]; then
  for folder in molecule/*/molecule.yml; do
    name=$(basename "$(dirname "$folder")")
    [ "$name" = default ] || scenarios+=("$name")
  done
fi
trap 'python -m lab down --inventory molecule/inventory' EXIT
passed=0
for name in "${scenarios[@]}"; do
  began=$SECONDS
  echo "molecule: $name"
  molecule test --scenario-name "$name" --destroy never
  passed=$((passed + 1))
  echo "molecule: $name passed in $((SECONDS - began)) s"
done
echo "molecule: $passed passed, 0 failed"
