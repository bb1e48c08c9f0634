# Edgewire's commands: one for each thing a developer does, the same words that CI uses. `make` lists them.
#
# Everything is built with cargo's dev profile and for the whole workspace: naming single crates would choose other
# features for the dependencies and compile them again. Only the static example workloads have a build of their own.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

export PATH := $(CURDIR)/.tools/bin:$(PATH):$(HOME)/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo demo-cut demo-heal clean-demo
demo: preflight setup build images ## Hub and two edges on this machine, and the outage; ONCE=1 asserts it and ends
	@scripts/demo $(if $(ONCE),--once)

demo-cut: ## In a running demo: drop the packets of a node's link (NODE=edge-a)
	@scripts/demo cut "$(or $(NODE),$(error which node? make demo-cut NODE=edge-a))"

demo-heal: ## In a running demo: give a node its link back (NODE=edge-a)
	@scripts/demo heal "$(or $(NODE),$(error which node? make demo-heal NODE=edge-a))"

clean-demo: ## Remove everything that a demo left, also after a kill -9
	@scripts/demo clean

.PHONY: test test-unit test-e2e
test: preflight setup lint build-all images previous ## Every check: format, lint, unit, end-to-end, the demo (what CI runs)
	cargo test --workspace --no-fail-fast
	@scripts/demo --once

test-unit: ## The tests inside the crates: no root, no servers of the machine
	cargo test --workspace --lib --bins

test-e2e: preflight setup build-all images previous ## The tests against real nats-server, containerd and kubectl
	cargo test --workspace --test '*' --no-fail-fast

.PHONY: faults
faults: preflight setup images build ## Every fault on every part, under load; results into docs/reliability.md (PAIR=kill/containerd)
	@target/debug/faults $(PAIR)

.PHONY: proof
proof: ## The simulator and the decoders for longer (SEEDS=20000 FUZZ_SECONDS=10)
	EDGEWIRE_SIM_SEEDS=$(or $(SEEDS),20000) cargo test --workspace --test sim every_seed_holds
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),10) cargo test --workspace --test decoders
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),10) cargo test --workspace --lib --bins whatever

.PHONY: teeth
teeth: preflight setup images ## Do the tests bite? Break each promise in a copy; its test must fail (TOOTH=07)
	@scripts/teeth.sh $(TOOTH)

.PHONY: lint fmt docs-check
lint: ## Format, clippy, licences and sources of dependencies, shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@# Advisories are left out: their database needs a network that may be absent. `cargo deny check advisories` asks.
	cargo deny --workspace check --hide-inclusion-graph licenses bans sources
	@if command -v shellcheck >/dev/null; then shellcheck scripts/*.sh .ci/run; \
		else echo "lint: no shellcheck on this machine; the scripts were not checked"; fi

fmt: ## Format the code
	cargo fmt --all

docs-check: ## Is what is generated from the code (docs/flows.md) still true?
	cargo test --workspace --test docs

.PHONY: bench images previous build build-all setup preflight
bench: preflight setup images ## Measure; print the tables that docs/benchmarks.md keeps (WHAT=pods, WHAT=sync or WHAT=door for one of them)
	cargo build --release --package cloud-hub --package edge-runtime --package edgewire
	@# PART: catch-up, drain, server, join, fleet; all of them without. CUTS=5,600 and LEAFS=100 reach the program too.
	@# The door runs within its bench, so that is optimised too.
	for bench in $(or $(WHAT),pods sync door); do \
		case $$bench in pods) bin=bench ;; door) bin='bench-door --release' ;; *) bin=bench-$$bench ;; esac; \
		EDGEWIRE_BIN_DIR=$(CURDIR)/target/release cargo run --quiet --package tests --bin $$bin -- $(PART); done

images: ## The example workloads as OCI images in target/images, with no registry
	@scripts/images.sh

previous: build ## The programs of the state before (tests/previous), for the tests of an upgrade
	@scripts/previous.sh

build: ## The programs (target/debug)
	cargo build --workspace --bins

build-all: ## The programs and all tests
	cargo build --workspace --all-targets

setup: ## Install what is missing (idempotent)
	@scripts/setup.sh

preflight: ## Name what this machine lacks
	@scripts/preflight.sh
