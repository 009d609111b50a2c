# Needs Go, git, make and gcc; the tests need PostgreSQL's server, pgbouncer, RabbitMQ and pytest.
LINT_VERSION := 2.15.0
LINT := .bin/golangci-lint
.DEFAULT_GOAL := help
.PHONY: help run test docs check fmt lint vet mod vuln race bench restarts explain-bench nodes $(LINT)

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 15

run: ## run one task from end to end and print its result
	go run ./cmd/opscore run echo '{"hello":"world"}'

test: nodes ## run the tests
	go test -timeout=30m ./...

docs: ## write docs/causes.md, which is made of the table in causes.go
	go test -count=1 -run '^TestTheListOfCausesIsWhatTheTableSays$$' . -docs

check: lint vet mod vuln race ## all that CI checks

fmt: $(LINT) ## format the code
	$(LINT) fmt

lint: $(LINT) ## check the format (gofumpt, goimports) and lint
	$(LINT) fmt --diff
	$(LINT) run ./... && cd bench && ../$(LINT) run ./...

vet: ## go vet, the benchmark's module included
	go vet ./...
	go -C bench vet ./...

mod: ## check that go.mod says what the code imports, and that what was fetched is what go.sum says
	go mod tidy -diff
	go mod verify

vuln: ## look for known vulnerabilities, if their database can be reached
	@out=$$(go tool -modfile=tools/go.mod govulncheck ./... 2>&1) && echo "$$out" || case "$$out" in \
	*"fetching vulnerabilities"*) echo "govulncheck: https://vuln.go.dev cannot be reached, nothing was checked" ;; \
	*) echo "$$out"; exit 1 ;; esac

race: nodes ## run the tests in random order with the race detector
	go test -race -shuffle=on -timeout=30m ./...

explain-bench: nodes ## inject every fault of the catalogue and see what explain says
	go test -timeout=60m -count=1 -v -run ExplainBench ./cmd/opscore -faults=all

restarts: nodes ## 100 rolling restarts and 200 zombies, on each tier
	go test -timeout=60m -count=1 -v -run 'RollingRestarts|StoppedForLongerThanItsLease' ./cmd/opscore -restarts=100 -zombies=200

bench: ## measure; see docs/benchmarks.md
	go -C bench run .

nodes: ## install the servers that the tests start, if they are missing
	@internal/nodes/install.sh

$(LINT):
	@[ "$$($(LINT) version --short 2>/dev/null)" = "$(LINT_VERSION)" ] || \
	GOBIN=$(CURDIR)/.bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(LINT_VERSION)
