# SPDX-License-Identifier: Apache-2.0
#
#   make demo    the whole way on real input; in a virtual machine where this kernel cannot
#   make test    everything, on all kernels
#   make help    the rest

SHELL := /bin/bash
.DEFAULT_GOAL := help

# What is built or fetched stays outside the tree.
CACHE := $(or $(OFFLOADD_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/offloadd)
BIN := $(CACHE)/bin
VM := $(BIN)/vm
KERNEL ?= 6.12
FUZZTIME ?= 20000x
export CGO_ENABLED = 0

.PHONY: help demo test build lint test-host fuzz test-runner test-vm test-no-tls test-languages test-long bench bench-quick bench-gate bench-baseline shell bpf FORCE

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: build $(VM) ## Serve a directory to curl and openssl over kernel TLS, and tell what happened
	@if why=$$($(VM) native 2>&1); then \
		exec $(BIN)/offloadd demo; \
	else \
		echo "Not on this kernel: $$why" >&2; \
		exec $(VM) exec -kernel $(KERNEL) -no-dir -file $(BIN)/offloadd:/usr/bin/offloadd -- offloadd demo; \
	fi

build: ## Build offloadd into the cache
	@mkdir -p $(BIN)
	@go build -trimpath -o $(BIN)/offloadd ./cmd/offloadd

bpf: $(VM) ## Build bpf/*.o of bpf/src; needs root
	$(VM) bpf ./bpf

$(VM): FORCE
	@mkdir -p $(BIN)
	@go build -trimpath -o $(VM) ./test/vm

test: lint test-host fuzz test-no-tls test-runner test-vm test-languages bench-gate ## Everything: lint, race detector, fuzzing, all kernels, costs

lint: ## gofmt (a test), go vet, staticcheck
	go vet ./...
	go tool staticcheck ./...

test-host: ## What needs no kernel TLS, with the race detector
	@command -v gcc >/dev/null || apt-get install -y --no-install-recommends gcc libc6-dev
	@for program in softhsm2-util swtpm openssl; do command -v $$program >/dev/null || \
		{ apt-get update && apt-get install -y --no-install-recommends softhsm2 swtpm openssl; }; done
	CGO_ENABLED=1 go vet -tags pkcs11 ./cmd/...
	CGO_ENABLED=1 go tool staticcheck -tags pkcs11 ./cmd/...
	CGO_ENABLED=1 OFFLOADD_EXPECT_TOKENS=1 go test -race -short -tags pkcs11 ./...
	go test -run WithoutPKCS11 ./cmd/...
	GOEXPERIMENT=runtimesecret go test ./handshaker
	go test ./cmd/offloadd/internal/ledger

fuzz: ## Each fuzz target for FUZZTIME: 20000x runs it so often, 5m so long
	@set -e; for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "fuzz $$package $$target for $(FUZZTIME)"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

test-no-tls: $(VM) ## A kernel whose TLS module is not there
	OFFLOADD_EXPECT_NO_TLS=1 go test -exec "$(VM) exec -kernel $(KERNEL) -without-tls" -run 'TestWithoutKernelTLS' -count=1 -v ./cmd/offloadd ./ktls/userspace

test-runner: ## The virtual machine runner itself
	go test -timeout 30m ./test/vm

# On one kernel, all daemons of the tests run under the BPF guards.
test-vm: $(VM) ## All that depends on the kernel, on each; the rest beside OpenSSL 3.5, on one
	$(VM) test -kernels $(KERNEL) -parallel 2 -timeout 30m ./blob/... ./handshaker ./ktls/userspace ./cmd/offloadd/internal/bench
	$(VM) test -together 2 -parallel 1 -run 'TestTheWatch|TestTheKernelDoesTheSame|TestFollowing|TestAPeerThatClosed|TestASuiteThat|TestMultipathTCP' ./test/vm/watch ./ktls/userspace
	OFFLOADD_EXPECT_NO_BPF_LSM=1 $(VM) test -kernels $(KERNEL) -append 'lsm=landlock,yama' -run 'TestGuards|TestTheForm|TestAnUpgrade|TestEveryWay' ./bpf
	OFFLOADD_EXPECT_LOCKDOWN=1 $(VM) test -kernels $(KERNEL) -append lockdown=confidentiality -run 'TestGuards|Lockdown' ./bpf
	$(VM) test -together 2 -parallel 1 ./bpf/...
	OFFLOADD_TEST_GUARD=7 $(VM) test -watch -together 2 -parallel 1 -module test/vm/tlsnic -timeout 40m ./ktls ./cmd/offloadd ./cmd/offloadd/internal/custody

test-long: $(VM) ## Longer than test has time for: 1 GiB both ways with a KeyUpdate before each MiB; a soak of faults
	OFFLOADD_TEST_VOLUME=1024 $(VM) test -kernels 7 -watch -timeout 30m -run 'TestKeysChangeUnderLoad' ./ktls
	OFFLOADD_TEST_SOAK=5m $(VM) test -parallel 1 -timeout 40m -run 'TestASoak' ./cmd/offloadd

test-languages: $(VM) ## The examples in other languages, on all kernels, with compilers and interpreters on a disk
	OFFLOADD_EXPECT_LANGUAGES=1 $(VM) test -languages -together 2 -parallel 1 -file blob/handoff/examples -file blob/handoff/preload -run Languages ./ktls ./cmd/offloadd

# On the instruction clock, so that the figures hardly depend on what else the machine does.
REPORT ?= $(CACHE)/report
bench: $(VM) ## Measure ours and the peers on two kernels, and report; takes an hour. REPORT=directory
	$(VM) bench -out $(REPORT)

bench-quick: $(VM) ## The same on one kernel, with less work and fewer repetitions; takes some minutes
	$(VM) bench -quick -kernels $(KERNEL) -out $(REPORT)

bench-gate: $(VM) ## Fail if what we cost has risen from the recorded baseline
	$(VM) bench -kernels 6.12 -gate test/vm/bench/baseline.json

bench-baseline: $(VM) ## Record the baseline of bench-gate anew
	$(VM) bench -kernels 6.12 -record test/vm/bench/baseline.json

shell: build $(VM) ## A shell in the virtual machine; KERNEL=6.1, 6.12 or 7
	@$(VM) exec -kernel $(KERNEL) -no-dir -file $(BIN)/offloadd:/usr/bin/offloadd -- /bin/sh
