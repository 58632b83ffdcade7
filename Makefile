# Heliotrope. Two commands matter: make demo, make test.
export CGO_ENABLED ?= 0
GO       ?= go
BIN      := bin
LAB      ?= topologies/three-clouds.yaml
FUZZTIME ?= 60s
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -trimpath -ldflags "-s -w -X main.version=$(VERSION) -X heliotrope/hostagent.Version=$(VERSION)"

# An S3 server that buckets are tested against, and where the tests look for it.
S3SERVER := github.com/versity/versitygw/cmd/versitygw@v1.8.0
# What images' copies are held against, next to what Debian has.
DESYNC   := github.com/folbricht/desync/cmd/desync@v1.0.4
TOOLS    := $(or $(HELIOTROPE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heliotrope)/bin

.PHONY: all deps deps-lab deps-servers build test race lint fuzz demo lab bench-fabric bench-traffic bench-sched bench-image bench-wan bench-sun clean

all: build

## deps: install what the demo and the tests need (Debian 12, root); quick when nothing is missing
deps: deps-lab deps-servers

## deps-lab: the part of it that the lab needs, and so the demo
deps-lab:
	@./topologies/lab/deps.sh

## deps-servers: the part of it that needs no root
deps-servers:
	@$(GO) version -m $(TOOLS)/versitygw 2>/dev/null | grep -q "^	mod	.*	$(lastword $(subst @, ,$(S3SERVER)))	" || \
		{ echo "deps: building $(S3SERVER)"; GOBIN=$(TOOLS) $(GO) install -trimpath -ldflags "-s -w" $(S3SERVER); }

## build: bin/heliotrope (controller, CLI, lab) and bin/heliotrope-agent
build:
	$(GO) build $(LDFLAGS) -o $(BIN)/ ./cmd/...

## test: everything, the lab included; needs root. One package at a time: two labs disturb each other's time
test: deps build
	$(GO) test -tags lab -p 1 -timeout 25m $(TESTFLAGS) ./...

## race: all but the lab, with the race detector
race: deps-servers
	CGO_ENABLED=1 $(GO) test -race -timeout 10m ./...

## lint: gofmt, vet, staticcheck, and a tidy go.mod
lint:
	@test -z "$$(gofmt -l .)" || { echo "gofmt these:"; gofmt -l .; exit 1; }
	$(GO) vet -tags lab ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags lab -checks all,-ST1000,-ST1005 ./...
	$(GO) mod tidy -diff

## fuzz: each fuzz target for FUZZTIME
fuzz:
	@$(GO) list ./... | while read -r pkg; do \
		dir=$$($(GO) list -f '{{.Dir}}' $$pkg); \
		grep -ohE 'func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | sed 's/func //' | while read -r f; do \
			echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done || exit 1; done

## demo: three clouds, a client with an open connection, and a VM that goes around the world
demo: deps-lab build
	@$(BIN)/heliotrope lab demo

## lab: bring a lab up (LAB=FILE) and leave it running; bin/heliotrope lab down ends it
lab: deps-lab build
	@$(BIN)/heliotrope lab up $(LAB)

## bench-fabric: meshes of 3 to 100 hosts; ends within 10 minutes
bench-fabric: deps-lab build
	@$(BIN)/heliotrope lab bench-fabric

## bench-traffic: what is said of traffic against what is true; ends within 40 minutes
bench-traffic: deps-lab build
	@$(BIN)/heliotrope lab bench-traffic

## bench-sched: plans against proven optima, METIS and the future (DATA=DIR: real prices, distances, requests and the ROADEF instances); ends within 90 minutes
bench-sched: deps-lab build
	@$(BIN)/heliotrope lab bench-sched $(if $(DATA),--data $(DATA))

## bench-sun: a day of three offices in 8 minutes, whose VM and whose leader follow the sun
bench-sun: deps build
	@$(BIN)/heliotrope lab sun

## bench-wan: moves of memory over a WAN next to QEMU's own ways; ends within 60 minutes
bench-wan: deps build
	@$(BIN)/heliotrope lab bench-wan

## bench-image: copies of images next to rsync, desync and casync; disks next to nbdkit; hosts, boots, crashes; ends within 30 minutes
bench-image: deps $(TOOLS)/desync build
	@$(BIN)/heliotrope lab bench-image

# go install wants to look up what the module's newest version says; a module that requires it need not.
$(TOOLS)/desync:
	@echo "deps: building $(DESYNC)"; mkdir -p $(TOOLS); tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && cd "$$tmp" && \
		printf 'module tools\n\ngo 1.26\n\nrequire github.com/folbricht/desync $(lastword $(subst @, ,$(DESYNC)))\n' >go.mod && \
		GOFLAGS=-mod=mod $(GO) build -trimpath -ldflags "-s -w" -o $@ $(firstword $(subst @, ,$(DESYNC)))

clean:
	rm -rf $(BIN)
