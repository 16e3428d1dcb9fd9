# Thicket: `make run` and `make test` are all the set-up there is.
# `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
PLATFORMS ?= linux/amd64,linux/arm64,linux/arm/v7
REGISTRY  ?= 127.0.0.1:8080
STACK     ?= stack.yml

export CGO_ENABLED ?= 0
export VERSION COMMIT

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: go
go:
	@command -v go >/dev/null || { echo 'Go is missing. Install Go 1.26 or newer: https://go.dev/dl/ (any Go from 1.21 on then fetches the right version itself).' >&2; exit 1; }

.PHONY: build
build: go ## build bin/gateway-ext for this machine
	@echo 'Building bin/gateway-ext (the first time also fetches its Go modules) ...'
	@.ci/build bin/gateway-ext

.PHONY: run
run: build ## run the weather app on this machine, until Ctrl-C
	@WEATHER_SIMULATE=$${WEATHER_SIMULATE:-true} bin/gateway-ext up -f $(STACK)

.PHONY: test
test: go ## run all tests, with the race detector (installs Debian's chromium, redis-server and wrk if they are missing)
	@.ci/need chromium redis-server wrk
	@echo 'Testing ...'
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 20m ./...
	@echo 'Counting what a call allocates, which the race detector would change ...'
	go test -run '^(TestTable|TestClaims)$$' ./functions/balance
	go test -run '^TestAllocations$$' ./gateway-ext/internal/proxy

.PHONY: faults
faults: go ## break what is around the program while it is called, and print what held (docs/faults.md)
	@.ci/need redis-server iptables
	@echo 'Breaking things; this takes about five minutes ...'
	@go -C gateway-ext/faults test -tags faults -count=1 -timeout 10m -skip '^TestFleet$$' $(FAULTS)

.PHONY: fleet
fleet: go ## run a NUC and six Pis in namespaces, break them while they are called, and print what held (docs/fleet-proof.md); DOC=1 writes the page
	@.ci/need iproute2 iptables
	@echo 'Building seven hosts and breaking them; this takes about two minutes ...'
	@go -C gateway-ext/faults test -tags faults -count=1 -timeout 5m -run '^TestFleet$$' $(if $(DOC),-doc ../../docs/fleet-proof.md) $(FLEET)

.PHONY: kube
kube: go ## try deploy/kubernetes on the cluster that KUBECONFIG names; IMAGE=REF is the program's image there
	@[ -n "$$KUBECONFIG" ] || { echo 'Which cluster? KUBECONFIG=$$HOME/.kube/config make kube (in a namespace of its own, which is removed at the end)' >&2; exit 1; }
	@case $$KUBECONFIG in /* | *:*) ;; *) export KUBECONFIG=$$PWD/$$KUBECONFIG ;; esac; \
	  IMAGE='$(IMAGE)' VARIANT='$(VARIANT)' go -C gateway-ext/kube test -tags kube -count=1 -timeout 20m

.PHONY: fleet-sim
fleet-sim: go ## decide for fleets of up to 2,000 nodes and 20,000 functions in virtual time, and write docs/placement.md
	@echo 'Simulating; this takes some minutes ...'
	@go -C gateway-ext/internal/fleet test -count=1 -timeout 1h -run '^TestFleetSim$$' -fleet-sim -doc $(CURDIR)/docs/placement.md

.PHONY: monitoring
monitoring: go ## evaluate each query of deploy/prometheus and deploy/grafana over the metrics of a real fleet
	@go -C .ci/promql test -count=1 ./...

.PHONY: lint
lint: go ## format, vet, modernize, staticcheck, actionlint, tidy
	@.ci/lint

.PHONY: bench
bench: go ## measure side by side with nginx, HAProxy and Caddy, and write docs/benchmarks.md; QUICK=1 prints a minute's worth
	@.ci/need wrk nginx haproxy caddy
	@go run ./gateway-ext/bench $(if $(QUICK),-quick,-numbers -doc docs/benchmarks.md) $(BENCH)

.PHONY: images
images: build ## build the functions' images for PLATFORMS and push them to REGISTRY
	THICKET_REGISTRY=$(REGISTRY) bin/gateway-ext build -f $(STACK) --push --platforms $(PLATFORMS)

.PHONY: release
release: go ## build the release's binaries into dist/, with checksums and bills of materials
	@rm -rf dist && mkdir -p dist
	@for t in linux/amd64 linux/arm64 linux/arm/7 linux/arm/6 darwin/arm64; do \
	  IFS=/ read -r os arch arm <<<"$$t"; \
	  out=dist/gateway-ext_$${os}_$${arch}$${arm:+v$$arm}; \
	  echo "Building $$out ..."; \
	  GOOS=$$os GOARCH=$$arch GOARM=$$arm .ci/build $$out || exit 1; \
	  go -C .ci/tools run ./sbom "$(CURDIR)/$$out" > $$out.cdx.json || exit 1; \
	done
	@git archive --format=tar HEAD deploy/systemd deploy/faasd | gzip -n > dist/gateway-ext_setup.tar.gz
	@cd dist && { command -v sha256sum >/dev/null && sha256sum gateway-ext_* || shasum -a 256 gateway-ext_*; } > SHA256SUMS
	@cat dist/SHA256SUMS

.PHONY: clean
clean: ## remove what was built, and the state of `make run`
	rm -rf bin build dist .thicket
