# Everything a contributor needs; "make help" lists it. Tools are pinned and live in .bin/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION   ?= 0.1.0
FUZZTIME  ?= 5s
BENCHTIME ?= 1s
# How many packages are built and tested side by side. The tests that start clusters need the other half of the cores.
JOBS      ?= $(shell nproc)

TOOLS    := $(CURDIR)/.bin
LDFLAGS  := -s -w -X main.version=$(VERSION)
GENERATED := proto docs deploy admin/ui/web/gen

GOLANGCI_LINT := $(TOOLS)/golangci-lint-v2.15.0
PROTOC_GEN_GO := $(TOOLS)/protoc-gen-go-v1.36.12
PROTOC_GEN_CONNECT := $(TOOLS)/protoc-gen-connect-go-v1.21.1
PROTOC_GEN_ES := $(TOOLS)/protoc-gen-es-2.17.0/node_modules/.bin/protoc-gen-es
BUF           := $(TOOLS)/buf-1.75.0

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/concord and bin/gwctl, static
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/concord ./cmd/gwctl

.PHONY: run
run: build ## Run a node in the foreground with its data under bin/data
	bin/concord run --prefix bin/data --v

.PHONY: demo
demo: build ## Start three nodes, walk through the JWT tutorial, kill the leader on the way
	@go run ./test/demo

.PHONY: test
test: build ## Run all tests
	CONCORD_BIN_DIR=$(CURDIR)/bin go test -p $(JOBS) -timeout 8m ./...

.PHONY: upgrades
upgrades: build ## Change the program of a node 40 times under load (UPGRADES=n)
	CONCORD_BIN_DIR=$(CURDIR)/bin CONCORD_UPGRADES=$(or $(UPGRADES),40) go test -count=1 -timeout 20m -run TestUpgradeUnderLoad -v ./test/e2e

.PHONY: race
race: ## Run the tests of the parts under the race detector
	CGO_ENABLED=1 go test -race -p $(JOBS) -timeout 15m $$(go list ./... | grep -v concord/test/)

.PHONY: lint
lint: $(GOLANGCI_LINT) $(BUF) ## Check style, imports, protobuf and go.mod
	go mod tidy -diff
	$(GOLANGCI_LINT) run ./...
	cd proto && $(BUF) lint && $(BUF) format --diff --exit-code

.PHONY: generate
generate: $(PROTOC_GEN_GO) $(PROTOC_GEN_CONNECT) $(PROTOC_GEN_ES) $(BUF) ## Generate protobuf code, the settings reference and the sample settings
	cd proto && $(BUF) generate && $(BUF) generate --template buf.gen.web.yaml --path concord/admin
	go test -run '^TestGenerated$$' ./cmd/concord/settings -update

.PHONY: checkgenerate
checkgenerate: ## Fail if generating changes a file
	before=$$(mktemp -d); trap 'rm -rf "$$before"' EXIT; cp -R --parents $(GENERATED) "$$before"; \
	$(MAKE) --no-print-directory generate; \
	for d in $(GENERATED); do diff -r "$$before/$$d" "$$d" || { echo "run make generate and commit the result" >&2; exit 1; }; done

# A failure is tried again: a finding was kept in testdata and fails once more, a hiccup of a slow machine does not.
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (5s)
	grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r dir; do \
		go test -list '^Fuzz' "$$dir" | grep '^Fuzz' | while read -r target; do \
			echo "== $$dir $$target"; \
			run="go test -run ^$$ -fuzz ^$$target\$$ -fuzztime $(FUZZTIME) $$dir"; \
			$$run || $$run; \
		done; \
	done

.PHONY: bench
bench: build ## CPU per request, latency and memory beside nginx and HAProxy (BENCH="-quick": flags of test/bench)
	go build -o bin/bench ./test/bench
	bin/bench $(BENCH)

.PHONY: microbench
microbench: ## Run Go's benchmarks (BENCHTIME, 1s each)
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -r -n1 dirname | sort -u)

.PHONY: package
package: build ## Build dist/concord-VERSION-linux-ARCH.tar.gz
	deploy/package.sh $(VERSION)

.PHONY: clean
clean: ## Remove what was built, not the tools
	rm -rf bin dist

# Tools: the file's name carries the version, so a new pin is a new file. The plain name is a link for buf.gen.yaml.
$(GOLANGCI_LINT):
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(@:$(TOOLS)/golangci-lint-%=%)
	mv $(TOOLS)/golangci-lint $@

$(PROTOC_GEN_GO):
	GOBIN=$(TOOLS) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(@:$(TOOLS)/protoc-gen-go-%=%)
	cp $(TOOLS)/protoc-gen-go $@

$(PROTOC_GEN_CONNECT):
	GOBIN=$(TOOLS) go install connectrpc.com/connect/cmd/protoc-gen-connect-go@$(@:$(TOOLS)/protoc-gen-connect-go-%=%)
	cp $(TOOLS)/protoc-gen-connect-go $@

$(PROTOC_GEN_ES): # in a folder of its own: npm would remove it with the next package that it installs there
	npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix $(@:%/node_modules/.bin/protoc-gen-es=%) @bufbuild/protoc-gen-es@2.17.0
	ln -sf $(@:$(TOOLS)/%=%) $(TOOLS)/protoc-gen-es

$(BUF): # the npm package carries the binary; its install script would fetch nothing more
	npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix $(TOOLS)/npm @bufbuild/buf@$(@:$(TOOLS)/buf-%=%)
	cp $(TOOLS)/npm/node_modules/@bufbuild/buf-linux-*/bin/buf $@
