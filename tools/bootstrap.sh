#!/usr/bin/env bash
# What `make` needs on a fresh Debian machine: Debian packages (installed when root), then .venv from requirements.lock.
# Registries come from the machine's own client settings (pip.conf, apt, npm).
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
need() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
need systemd-nspawn systemd-container
need mmdebstrap mmdebstrap
need nft nftables
need ip iproute2
need ssh openssh-client
need shellcheck shellcheck
need promtool prometheus
need npm npm
# A test looks at a run's report in a real browser.
need chromium chromium
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
# Tests of PBML start servers of their own.
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)

if [ "${#packages[@]}" -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "bootstrap: missing Debian packages. Run as root: apt-get install ${packages[*]}" >&2
    exit 1
  fi
  echo "bootstrap: installing Debian packages: ${packages[*]}"
  # The control node runs no service of its own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

want=$(sha256sum requirements.lock | cut -d' ' -f1)
[ "$(cat .venv/.lock 2>/dev/null)" = "$want" ] && exit 0

python3 - <<'PY'
import sys
if sys.version_info < (3, 11):
    sys.exit(f"bootstrap: Python {sys.version.split()[0]} is too old: the control node needs 3.11 or newer.")
PY
echo "bootstrap: making .venv from requirements.lock"
[ -x .venv/bin/python ] || python3 -m venv .venv
# uv installs the lock in seconds where pip needs a minute; pip fetches uv itself, by the lock's own hash.
scratch=$(mktemp)
sed -n '/^uv==/,/[^\\]$/p' requirements.lock >"$scratch"
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r "$scratch"
rm -f "$scratch"
index=$(.venv/bin/pip config get global.index-url 2>/dev/null || true)
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index} .venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
echo "$want" >.venv/.lock
