"""Newer packages for a host: what it has, packed again under a higher version, in an archive on its own disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lab.host import Host

SUFFIX = "+newer1"

SCRIPT = f"""
set -eu
# What was offered before would be found instead of Debian's, and what it gave goes back.
if [ -e /etc/apt/sources.list.d/newer.list ]; then rm /etc/apt/sources.list.d/newer.list && apt-get update -qq; fi
for package in "$@"; do
  version=$(dpkg-query -W -f '${{Version}}' "$package")
  case $version in *{SUFFIX}) ;; *) continue ;; esac
  held=$(apt-mark showhold "$package")
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --allow-downgrades --allow-change-held-packages \
    -o Dpkg::Options::=--force-confold "$package=${{version%{SUFFIX}}}" >/dev/null
  if [ -n "$held" ]; then apt-mark hold "$package" >/dev/null; fi
done
rm -rf /srv/newer && mkdir -p /srv/newer/archive && cd /srv/newer
apt-get download -qq "$@" >/dev/null
for package in *.deb; do
  dpkg-deb -R "$package" tree
  sed -i 's/^Version: .*/&{SUFFIX}/' tree/DEBIAN/control
  dpkg-deb -Zgzip -z1 -b tree "archive/$package" >/dev/null
  rm -r tree "$package"
done
cd archive
for package in *.deb; do
  dpkg-deb -f "$package"
  printf 'Filename: ./%s\\nSize: %s\\n' "$package" "$(stat -c %s "$package")"
  printf 'SHA256: %s\\n\\n' "$(sha256sum "$package" | cut -d' ' -f1)"
done > Packages
echo 'deb [trusted=yes] file:/srv/newer/archive ./' > /etc/apt/sources.list.d/newer.list
"""


def offer(hosts: list[Host], packages: list[str]) -> None:
    """The next `apt-get update` on these hosts finds them; what they have of an earlier offer is Debian's again.

    Raises LabError.
    """
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: host.execute(["sh", "-c", SCRIPT, "sh", *packages], timeout=300), hosts))


def installed(host: Host, package: str) -> str:
    """The version that is installed."""
    return host.execute(["dpkg-query", "-W", "-f", "${Version}", package]).stdout
