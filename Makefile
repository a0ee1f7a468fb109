# make demo     build, install, fetch a real model, answer a question with it
# make test     build with tests, install what they need, run them
# make lint     formatting, linters, type checks
# make asan     the tests under AddressSanitizer and UndefinedBehaviorSanitizer
# make tsan     the tests under ThreadSanitizer
# make format   rewrite sources the way `make lint` wants them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := smollm2-135m-instruct
JOBS := $(shell nproc)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
INSTALL := $(PIP) --no-build-isolation --config-settings=cmake.define.CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS)

.PHONY: demo test lint format asan tsan clean help

help:
	@sed -n 's/^# //p' Makefile

# A virtual environment with what builds need. A fresh Debian lacks venv and the Python headers: root may install them.
$(VENV)/ready: pyproject.toml tools/make_venv.sh
	PYTHON=$(PYTHON) sh tools/make_venv.sh $(VENV)
	touch $@

demo: $(VENV)/ready
	$(INSTALL) --config-settings=build-dir=build/demo .
	$(BIN)/llm-boost pull $(MODEL)
	$(BIN)/llm-boost run $(MODEL) "Why is the sky blue? Answer in two sentences." --max-tokens 96

test: $(VENV)/ready
	$(PIP) --group test
	$(INSTALL) --config-settings=build-dir=build/test --config-settings=cmake.define.LLM_BOOST_TESTS=ON .
	$(BIN)/llm-boost pull $(MODEL)
	$(BIN)/python -m pytest

CXX_SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inc' 'tests/*.h' 'tests/*.cpp')

lint: $(VENV)/ready
	$(PIP) --group lint --group test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(INSTALL) --config-settings=build-dir=build/test --config-settings=cmake.define.LLM_BOOST_TESTS=ON .
	$(BIN)/mypy
	cd tests && ../$(BIN)/python -m mypy.stubtest llm_boost._core --allowlist stubtest_allowlist.txt --mypy-config-file ../pyproject.toml

format: $(VENV)/ready
	$(PIP) --group lint
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The sanitizer's runtime must be the first library in the process, before Python itself. Its report goes to the standard
# error of a process that then ends, where pytest must not hold it back.
SANITIZED = $(BIN)/cmake --preset $(1) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	&& $(BIN)/cmake --build --preset $(1) -j $(JOBS) && $(BIN)/cmake --install build/$(1) --prefix build/$(1)/site > /dev/null

asan: $(VENV)/ready
	$(PIP) --group test
	PATH=$(CURDIR)/$(BIN):$$PATH; $(call SANITIZED,dev)
	$(BIN)/llm-boost pull $(MODEL) || $(MAKE) demo
	PYTHONPATH=$(CURDIR)/build/dev/site LLM_BOOST_SANITIZER=address ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" $(BIN)/python -m pytest --capture=sys

# Where a library's thread-local storage lies, the sanitizer guesses from what precedes it in memory, and dies of a wrong
# guess: one in some thousand threads. So it is told not to.
tsan: $(VENV)/ready
	$(PIP) --group test
	PATH=$(CURDIR)/$(BIN):$$PATH; $(call SANITIZED,tsan)
	$(BIN)/llm-boost pull $(MODEL) || $(MAKE) demo
	PYTHONPATH=$(CURDIR)/build/tsan/site LLM_BOOST_SANITIZER=thread TSAN_OPTIONS="halt_on_error=1 ignore_noninstrumented_modules=1 intercept_tls_get_addr=0 suppressions=$(CURDIR)/tests/tsan_suppressions.txt" \
		LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" setarch -R $(BIN)/python -m pytest --capture=sys

clean:
	rm -rf build dist $(VENV)
