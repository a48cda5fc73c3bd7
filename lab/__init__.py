"""Real Debian hosts on one machine: systemd-nspawn containers that Ansible reaches by SSH, and faults for them."""
