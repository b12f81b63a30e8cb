# Every target does its own set-up; CONTRIBUTING.md says what each is for.

.DELETE_ON_ERROR:
.PHONY: check unit lint deb demo reproducible fuzz mutation bench soak coverage reference lock clean help

# Debian's own Python, which is what the package runs on.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)

build := .build
venv := .venv
version := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' vfio_flavourd/__init__.py)
deb := dist/vfio-flavourd_$(version)_all.deb
pytest = $(venv)/bin/python -m pytest

# systemd-python and pyfuse3 come as source only: the headers and the compiler are for them. kmod is what the
# resolution is compared with.
python_packages := python3-venv
dev_packages := $(python_packages) gcc kmod libc6-dev libfuse3-dev libsystemd-dev pkg-config python3-dev
lint_packages := bash-completion fish mandoc shellcheck systemd zsh
deb_packages := $(python_packages) build-essential debhelper dh-python dpkg-dev fakeroot pybuild-plugin-pyproject python3-hatchling

deb_parts := CHANGELOG.md CONTRIBUTING.md LICENSE README.md catalog completions debian dracut grafana initramfs-tools libexec man pyproject.toml samples schemas \
	SECURITY.md systemd sysusers.d udev-rules vfio_flavourd $(wildcard docs)
deb_inputs := $(shell find $(deb_parts) -type f ! -name '*.pyc' 2>/dev/null)

# What pip and dpkg-buildpackage say is kept for when they fail.
quietly = log=$(build)/$(1).log; ( $(2) ) >$$log 2>&1 || { tail -n 20 $$log >&2; echo "$(1): failed, see $$log" >&2; exit 1; }

help:
	@sed -n 's/^| `make \([a-z]*\)` | /  \1: /p' CONTRIBUTING.md | sed 's/ |$$//; s/`//g'

# What fails in seconds comes first. Meanwhile the other processor builds the virtual machines, one after the other;
# what is wrong with that the guest's tests say, which need them.
check: $(build)/dev.stamp $(build)/lint-packages.stamp $(deb)
	@for release in trixie bookworm; do $(venv)/bin/python -m tests.guest build --release $$release --deb $(deb); done \
	    >$(build)/images.log 2>&1 & $(pytest) tests/lint tests/unit tests/fuzz; status=$$?; wait; exit $$status
	@$(MAKE) --no-print-directory reproducible
	@$(pytest) tests/guest --share --durations 25 --deb $(deb)

unit: $(build)/dev.stamp
	@$(pytest) tests/unit

lint: $(build)/dev.stamp $(build)/lint-packages.stamp
	@$(pytest) tests/lint

deb: $(deb)

# `make fuzz RUNS=20000` for a short one; one target: python -m tests.fuzz policy.
RUNS ?= 10000000
fuzz: $(build)/fuzz.stamp
	@for run in 1 2 3 4 5 6 7 8 9 10; do $(pytest) -q -m hypothesis --hypothesis-profile random tests/unit || exit; done
	@$(venv)/bin/python -m tests.fuzz --runs $(RUNS)

# One area: make mutation AREAS=policy.
mutation: $(build)/mutation.stamp
	@$(venv)/bin/python -m tests.mutation $(AREAS)

demo: $(deb) $(build)/dev.stamp
	@$(venv)/bin/python -m tests.guest demo --deb $(deb)

# The unit tests' lines; the guest's tests run what these can't.
coverage: $(build)/dev.stamp
	@$(venv)/bin/python -m coverage erase
	@$(venv)/bin/python -m coverage run -m pytest tests/unit
	@$(venv)/bin/python -m coverage combine --quiet
	@$(venv)/bin/python -m coverage report

# On one release.
soak: $(deb) $(build)/dev.stamp
	@$(pytest) -s tests/guest/test_faults.py tests/guest/test_soak.py --guest-release trixie --deb $(deb) \
	    --thorough --soak-minutes 120

bench: $(deb) $(build)/dev.stamp
	@$(venv)/bin/python -m bench --deb $(deb) --write-docs

clean:
	rm -rf $(build) $(venv) dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find vfio_flavourd bench tests tools -name __pycache__ -prune -exec rm -r {} +

reference: $(build)/dev.stamp
	@$(venv)/bin/python -m vfio_flavourd.config.schema > schemas/policy.schema.json
	@$(venv)/bin/python -m vfio_flavourd.cli.schema > schemas/flavourctl.schema.json
	@$(venv)/bin/python -m tools

# One file for Python 3.11 to 3.13, by markers.
lock: $(build)/venv.stamp
	@$(venv)/bin/python -m pip install --quiet --require-hashes -r requirements-lock.txt
	@$(venv)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --upgrade --extra test --extra lint pyproject.toml --output-file requirements-dev.txt
	@$(venv)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --upgrade --group fuzz --output-file requirements-fuzz.txt
	@$(venv)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --upgrade --group mutation --constraint requirements-dev.txt --output-file requirements-mutation.txt
	@$(venv)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-annotate --upgrade --group lock --output-file requirements-lock.txt

$(build):
	@mkdir -p $@

$(build)/venv.stamp: | $(build)
	@.ci/install-packages $(python_packages)
	@$(call quietly,venv,$(PYTHON) -m venv --clear $(venv))
	@touch $@

$(build)/dev.stamp: requirements-dev.txt $(build)/venv.stamp
	@.ci/install-packages $(dev_packages)
	@echo "installing the Python packages of requirements-dev.txt in $(venv)"
	@$(call quietly,pip,$(venv)/bin/python -m pip install --require-hashes -r requirements-dev.txt)
	@touch $@

$(build)/fuzz.stamp: requirements-fuzz.txt $(build)/dev.stamp
	@$(call quietly,pip-fuzz,$(venv)/bin/python -m pip install --require-hashes -r requirements-fuzz.txt)
	@touch $@

$(build)/mutation.stamp: requirements-mutation.txt $(build)/dev.stamp
	@$(call quietly,pip-mutation,$(venv)/bin/python -m pip install --require-hashes -r requirements-mutation.txt)
	@touch $@

$(build)/lint-packages.stamp: | $(build)
	@.ci/install-packages $(lint_packages)
	@touch $@

$(build)/vendored.stamp: debian/vendored-requirements.txt $(build)/venv.stamp
	@rm -rf $(build)/vendored
	@$(call quietly,vendored,$(venv)/bin/python -m pip download --no-deps --only-binary=:all: --require-hashes \
		--dest $(build)/vendored -r debian/vendored-requirements.txt)
	@touch $@

# In a copy: dpkg-buildpackage writes into the tree it builds and beside it.
copy_of_source = rm -rf $(1) && mkdir -p $(1)/source && \
	tar -c --exclude='*.pyc' --exclude=__pycache__ $(wildcard $(deb_parts)) | tar -x -C $(1)/source && \
	cp -r $(build)/vendored $(1)/source/debian/vendored

# With Debian's own PATH: pybuild takes the first python3.11 there is, and that must be the one which has its plugins.
build_package = env -u MAKEFLAGS -u MAKELEVEL -u SOURCE_DATE_EPOCH PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	dpkg-buildpackage --build=binary --no-sign

$(deb): $(deb_inputs) $(build)/vendored.stamp
	@.ci/install-packages $(deb_packages)
	@echo "building $@"
	@mkdir -p dist
	@$(call copy_of_source,$(build)/deb)
	@$(call quietly,deb,cd $(build)/deb/source && $(build_package))
	@cp $(build)/deb/$(@F) $@

# As somebody else might: of files from before the changelog, elsewhere, with other rights, language and time zone.
reproducible: $(deb)
	@umask 077 && $(call copy_of_source,$(build)/deb-again/elsewhere)
	@find $(build)/deb-again -exec touch --date=2020-02-02 {} +
	@$(call quietly,deb-again,umask 077 && cd $(build)/deb-again/elsewhere/source && LC_ALL=C TZ=Asia/Tokyo $(build_package))
	@cmp $(deb) $(build)/deb-again/elsewhere/$(notdir $(deb))
	@sha256sum $(deb)
