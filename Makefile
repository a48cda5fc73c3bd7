# Everything an operator or developer runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

INVENTORY ?= inventories/lab
# The scenarios that `make test` runs; `make molecule` runs all of them.
MOLECULE_SHORT ?= base pki firewall cache
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONUNBUFFERED := 1
# Every task of a playbook is a new process: without compiled plugins each compiles them again.
unexport PYTHONDONTWRITEBYTECODE
comma := ,
# Made by `make secrets`, once per checkout; every playbook run reads it.
vault = $(if $(wildcard $(INVENTORY)/.vault-password),ANSIBLE_VAULT_PASSWORD_FILE=$(INVENTORY)/.vault-password)
play = $(vault) ansible-playbook -i $(INVENTORY)

.PHONY: help venv lab lab-up lab-down lab-status site roll verify preflight pg-status secrets models ask \
	lint unit model syntax molecule molecule-short integration integration-long test docs bench-deploy chaos-site chaos-postgres \
	chaos-pbml chaos-qwen vm-postgres bench-failover bench-semantic-cache bench-qwen bench-qwen-memory bench-affinity \
	bench-pbml bench-pbml-short fuzz-pbml bench-rolling chaos-rollout clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv:
	@tools/bootstrap.sh

lab: venv ## four real systemd hosts, the whole platform on them, a question asked and answered
	@python -m tools.lab_run --inventory $(INVENTORY)

lab-up: venv ## only the hosts
	@python -m lab up --inventory $(INVENTORY)

lab-down: venv ## removes the lab's hosts, networks, mounts and processes
	@python -m lab down --inventory $(INVENTORY)

lab-status: venv ## the lab's hosts
	@python -m lab status --inventory $(INVENTORY)

secrets: venv ## generates the missing secrets of INVENTORY (never overwrites one)
	@$(play) playbooks/secrets.yml

models: venv ## makes the lab's model files
	@python -m tools.models

preflight: venv ## checks inventory, variables and hosts; changes nothing
	@$(play) playbooks/preflight.yml $(ARGS)

site: venv ## deploys INVENTORY; ARGS="--check --diff", "--limit lab3", "--tags qdrant"
	@$(play) playbooks/site.yml $(ARGS)

roll: venv ## rolling update of TIER=all: the plan with ARGS=--check, one host with ARGS="-e host=lab2"
	@$(play) playbooks/rolling_update.yml -e tier=$(or $(TIER),all) $(ARGS)

verify: venv ## asks every tier for real work and prints a table
	@$(play) playbooks/verify.yml $(ARGS)

pg-status: venv ## who leads PostgreSQL, who follows, what is wrong and what to do about it
	@$(play) playbooks/pg_status.yml $(ARGS)

ask: venv ## asks the platform: make ask Q="..."
	@$(vault) python -m tools.ask --inventory $(INVENTORY) $(if $(Q),--question "$(Q)")

lint: venv ## ansible-lint (production), yamllint, ruff, mypy, shellcheck, generated docs
	@tools/lint.sh

unit: venv ## fast tests, no hosts
	@pytest tests/unit --numprocesses auto --dist loadfile --timeout 300 --durations 15

model: venv ## the failover protocol explored to bounds, mistakes found; ARGS="--seconds 900 --seed 1 --traces"
	@python -m tests.model $(ARGS)

syntax: venv ## syntax of every playbook against both inventories
	@tools/syntax.sh

molecule: venv ## every role's scenario on real hosts
	@tools/molecule.sh

molecule-short: venv ## the scenarios that fit CI
	@tools/molecule.sh $(MOLECULE_SHORT)

integration: venv ## the lab, the site, verify, second run, a lost host, bad input; takes the lab down
	@pytest tests/integration -m "not long" --durations 30

integration-long: venv ## what takes too long for CI: a newer PostgreSQL under load, a standby host, vLLM rolled
	@pytest tests/integration -m long --durations 5

test: lint unit syntax molecule-short integration ## everything CI runs

docs: venv ## generated tables in docs/ and the roles' READMEs
	@python -m tools.docs

bench-deploy: venv ## deployment times beside the floor, writes .cache/bench/deploy.json
	@pytest -s tests/integration/test_platform.py -k deploy

chaos-site: venv ## site.yml interrupted at ROUNDS random moments (10), then converging
	@pytest -s tests/chaos/test_site_interrupted.py

chaos-postgres: venv ## faults on a PostgreSQL cluster under load: ROUNDS=1 SEED=1 FAULT=all, e.g. power_cut,freeze
	@python -m tests.chaos.postgres.run --rounds $(or $(ROUNDS),1) --seed $(or $(SEED),1) --fault $(or $(FAULT),all)

chaos-pbml: venv ## faults on the whole platform while clients ingest and fetch: ROUNDS=1 SEED=1 FAULT=all REPEAT=1 LOCAL=1 (spool and state) AWAY=30; writes docs/pbml-chaos.md
	@PYTHONPATH=services/src python -m tests.chaos.pbml.run --rounds $(or $(ROUNDS),1) --seed $(or $(SEED),1) --fault $(or $(FAULT),all) \
	  --repeat $(or $(REPEAT),1) --away $(or $(AWAY),30) $(if $(LOCAL),--local) $(ARGS) --write-docs

fuzz-pbml: venv ## PBML's API asked all that its OpenAPI document allows, by schemathesis: ARGS="--seconds 45 --seed 1"
	@PYTHONPATH=services/src python -m tests.fuzz.pbml $(ARGS)

chaos-qwen: venv ## what clients of the whole platform see of each fault: ROUNDS=1 SEED=1 FAULT=all RATE=4 KEEP=1 (the running lab)
	@$(vault) python -m tests.chaos.qwen.run --rounds $(or $(ROUNDS),1) --seed $(or $(SEED),1) --fault $(or $(FAULT),all) \
	  --rate $(or $(RATE),4) --inventory $(INVENTORY) $(if $(KEEP),--keep)

vm-postgres: venv ## a virtual machine's power fails: the agent's fsync, beside controls without; ROUNDS=5 SEED=1
	@python -m tests.vm.run --install-prerequisites --rounds $(or $(ROUNDS),5) --seed $(or $(SEED),1) $(ARGS)

bench-failover: venv ## failover and switchover beside Patroni: ROUNDS=3 PEER_ROUNDS=3; writes docs/postgres-ha-bench.md
	@python -m tests.bench.failover.run --rounds $(or $(ROUNDS),3) --seed $(or $(SEED),1) \
	  $(if $(PEER_ROUNDS),--peer-rounds $(PEER_ROUNDS))

bench-semantic-cache: venv models ## false hits of QWEN's semantic cache: PACKAGES=100; writes docs/qwen-semantic-cache.md
	@PYTHONPATH=services/src python -m tests.bench.semantic_cache.run --packages $(or $(PACKAGES),100)

bench-qwen: venv ## what QWEN adds to a request, beside LiteLLM: RATE=50 DURATION=60; writes docs/qwen-bench.md
	@PYTHONPATH=services/src python -m tests.bench.qwen.run --rate $(or $(RATE),50) --seconds $(or $(DURATION),60)

bench-qwen-memory: venv ## memory of QWEN and LiteLLM under the same load: MINUTES=30 RATE=20; writes docs/qwen-bench.md
	@PYTHONPATH=services/src python -m tests.bench.qwen.memory --minutes $(or $(MINUTES),30) --rate $(or $(RATE),20)

bench-affinity: venv ## conversations on one instance beside round robin: CONVERSATIONS=6 TURNS=6 ROUNDS=3 KEEP=1 (the running lab)
	@$(vault) python -m tests.bench.affinity.run --rounds $(or $(ROUNDS),3) --conversations $(or $(CONVERSATIONS),6) \
	  --turns $(or $(TURNS),6) --inventory $(INVENTORY) $(if $(KEEP),--keep)

bench-pbml: venv models ## PBML beside mem0 and bare calls: SIZES=1000,10000 REAL=5000; writes docs/pbml-bench.md
	@PYTHONPATH=services/src python -m tests.bench.pbml.run --sizes $(or $(SIZES),1000,10000) --real $(or $(REAL),5000) $(ARGS)

bench-pbml-short: venv models ## the same in a few minutes; writes nothing
	@PYTHONPATH=services/src python -m tests.bench.pbml.run --short-form --only-look $(ARGS)

bench-rolling: venv ## what clients notice of a rolling update, beside plain restarts: ARMS=check,update,restart,plain KEEP=1; writes docs/rolling-bench.md
	@$(vault) python -m tests.bench.rolling.run --arms $(or $(ARMS),check$(comma)update$(comma)plain) --inventory $(INVENTORY) \
	  $(if $(KEEP),--keep) $(ARGS)

chaos-rollout: venv ## faults of a rolling update under load: ROUNDS=1 SEED=1 FAULT=all KEEP=1 (the running lab); writes docs/rollout-chaos.md
	@$(vault) python -m tests.chaos.rollout.run --rounds $(or $(ROUNDS),1) --seed $(or $(SEED),1) --fault $(or $(FAULT),all) \
	  --inventory $(INVENTORY) $(if $(KEEP),--keep) $(ARGS)

clean: lab-down ## the lab and everything generated in this checkout but secrets
	@rm -rf .cache
