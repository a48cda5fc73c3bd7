#!/usr/bin/env bash
# --syntax-check of every playbook against every inventory.
set -euo pipefail
cd "$(dirname "$0")/.."
count=0
for inventory in inventories/*/; do
  for playbook in playbooks/*.yml; do
    ansible-playbook -i "$inventory" --syntax-check "$playbook" >/dev/null || {
      echo "syntax: $playbook fails against $inventory" >&2
      exit 1
    }
    count=$((count + 1))
  done
done
echo "syntax: $count passed, 0 failed"
