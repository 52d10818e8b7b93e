# The commands of this project. Each installs what it needs (tools/bootstrap), as root; tried on Debian 12 and 13.

VENV := .cache/venv
DEBS := $(CURDIR)/.cache/debs
GO := $(DEBS)/usr/lib/cni
BACKEND := nftables
NEWEST := $(CURDIR)/.cache/newest
FETCH = $(VENV)/bin/python tests/clients/fetch_debs.py
# Each worker reads all tests: their bytecode is kept, and made while packages are fetched.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/pytest
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
	@echo "make test-kernels   run every plugin, what this kernel lacks, and the demo, on Debian's kernels, emulated"
	@echo "make test-newest    run what meets the Go plugins and clients of Debian's testing suite"
	@echo "make test-nerdctl NERDCTL=/path/to/nerdctl   run the real nerdctl with our plugins, rootful and rootless"
	@echo "make clean   remove what these made (.cache)"

lab:
	@tools/bootstrap lab

tested:
	@tools/bootstrap test
	@$(PYTEST) --collect-only -qq $(TESTS) >/dev/null 2>&1 & \
	export CNI_PY_DEBS=$(DEBS); \
	$(FETCH) >/dev/null || test -z "$$CI" || exit; \
	$(FETCH) --browser >/dev/null || true; \
	$(FETCH) --newest >/dev/null || true; \
	wait

demo: lab
	@$(VENV)/bin/python netns-fixtures/demo.py

# More workers than a small machine has cores: many tests wait for a kernel, a client or a daemon.
test: tested
	$(REFERENCES) $(PYTEST) -n 4 --dist loadgroup -q $(TESTS)

quick:
	@tools/bootstrap test
	$(PYTEST) -n 3 --dist loadgroup -q --quick tests/unit tests/plugins

fuzz: tested
	CNI_PY_FUZZ=random $(PYTEST) -n 2 -q tests/fuzz

test-kernels: tested
	@CNI_PY_DEBS=$(DEBS) $(VENV)/bin/python -m tests.kernels.run

test-newest: tested
	CNI_PY_NEWEST=$(BACKEND) CNI_PY_DEBS=$(DEBS) CNI_GO_BIN_DIR=$(NEWEST)/usr/lib/cni $(PYTEST) -n 4 --dist loadgroup -q $(TESTS)

NERDCTL_STEPS = $(addprefix tests/clients/,nerdctl_steps.py nerdctl_rootless.py podman_rootless.py)
test-nerdctl: tested
	@test -x "$(NERDCTL)" || { echo "test-nerdctl: NERDCTL=/path/to/nerdctl has to name an executable (docs/nerdctl.md)" >&2; exit 3; }
	NERDCTL="$(abspath $(NERDCTL))" $(REFERENCES) $(PYTEST) -n 2 --dist loadgroup -v $(NERDCTL_STEPS)

bench: tested
	@rm -rf .cache/bin && $(VENV)/bin/cni-py install --launcher=python --bin-dir .cache/bin --conf-dir .cache/net.d >/dev/null
	@$(VENV)/bin/python bench/plugins.py --ours .cache/bin --cni-py $(VENV)/bin/cni-py --go $(NEWEST)/usr/lib/cni --older-go $(GO) \
		--json .cache/bench.json $(BENCH)
	@if test -x $(DEBS)/usr/sbin/docker-proxy; then \
		$(VENV)/bin/python bench/publishers.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-publishers.json && \
		$(VENV)/bin/python bench/bulk.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-bulk.json && \
		$(VENV)/bin/python bench/ranges.py --portfwd $(VENV)/bin/portfwd --debs $(DEBS) --json .cache/bench-ranges.json; \
	else echo "not measured: portfwd: Debian's docker.io, podman and socat could not be unpacked in $(DEBS)" >&2; fi

clean:
	rm -rf .cache build

.PHONY: help lab tested demo test quick fuzz test-kernels test-newest test-nerdctl bench clean
