# The commands of this project. Each installs what it needs (tools/bootstrap), as root; tried on Debian 12 and 13.

VENV := .cache/venv
DEBS := $(CURDIR)/.cache/debs
GO := $(DEBS)/usr/lib/cni
NEWEST := $(CURDIR)/.cache/newest
# Without Debian's packages a person's run goes on without the real clients and the Go plugins; CI needs them.
REFERENCES = CNI_PY_DEBS=$(DEBS) CNI_GO_BIN_DIR=$$(test ! -d $(GO) || echo $(GO))

help:
	@echo "make demo    publish a port of a container and reach it on every path, in throwaway namespaces"
	@echo "make test    run the tests, against the installed wheel and beside Debian's Go plugins"
	@echo "             (with CI=true what this machine lacks is a failure, otherwise a skipped test)"
	@echo "make test TESTS=tests/plugins/test_ptp.py   run some of them"
	@echo "make quick   run the units, and one test of each plugin in namespaces: under a minute"
	@echo "make fuzz    hostile input again, other than last time"
	@echo "make bench   time our plugins beside the Go plugins, and portfwd beside docker-proxy, rootlessport and socat"
	@echo "make clean   remove what these made (.cache)"

lab:
	@tools/bootstrap lab

tested:
	@tools/bootstrap test
	@CNI_PY_DEBS=$(DEBS) $(VENV)/bin/python tests/clients/fetch_debs.py >/dev/null || test -z "$$CI"

demo: lab
	@$(VENV)/bin/python netns-fixtures/demo.py

# More workers than a small machine has cores: many tests wait for a kernel, a client or a daemon.
test: tested
	$(REFERENCES) $(VENV)/bin/pytest -n 4 --dist loadgroup -q $(TESTS)

quick:
	@tools/bootstrap test
	$(VENV)/bin/pytest -n 3 --dist loadgroup -q --quick tests/unit tests/plugins

fuzz: tested
	CNI_PY_FUZZ=random $(VENV)/bin/pytest -n 2 -q tests/fuzz

bench: tested
	@rm -rf .cache/bin && $(VENV)/bin/cni-py install --launcher=python --bin-dir .cache/bin --conf-dir .cache/net.d >/dev/null
	@$(VENV)/bin/python tests/clients/fetch_debs.py --newest $(NEWEST) >/dev/null || true
	@$(VENV)/bin/python bench/plugins.py --ours .cache/bin --cni-py $(VENV)/bin/cni-py --go $(NEWEST)/usr/lib/cni --older-go $(GO) \
		--json .cache/bench.json $(BENCH)
	@if test -x $(DEBS)/usr/sbin/docker-proxy; then \
		$(VENV)/bin/python bench/publishers.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-publishers.json && \
		$(VENV)/bin/python bench/bulk.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-bulk.json && \
		$(VENV)/bin/python bench/ranges.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-ranges.json; \
	else echo "not measured: portfwd: Debian's docker.io, podman and socat could not be unpacked in $(DEBS)" >&2; fi

clean:
	rm -rf .cache build

.PHONY: help lab tested demo test quick fuzz bench clean
