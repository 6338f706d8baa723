# Every word sets up .venv by itself, and again when the requirements have changed.
.PHONY: demo test dev check docs site notebooks bench soak compat lowest newest lock clean

# The Python that .venv is made with, if not the first one that fits: make PYTHON=python3.12
PYTHON ?=
# More words for `langgraph dev`, such as DEV='--no-browser --port 8123'.
DEV ?=
# How the tests are run; WORKERS=0 keeps them in one process, where a debugger works.
WORKERS ?= 2
PYTEST := .venv/bin/pytest -n $(WORKERS) --dist worksteal
# What a lock is made from. The one there is is read first, so that only what must change does.
LOCK := .venv/bin/uv pip compile --quiet pyproject.toml --group dev --group docs --all-extras \
	--universal --python-version 3.11 --no-header --no-emit-index-url --annotation-style line
READY := .venv/ready
LOWEST := .venv-lowest
NEWEST := .venv-newest
# What runs on the oldest and the newest releases; fewer for a quick look: make compat COMPAT=tests/rows
COMPAT ?= tests/laws tests/agents tests/rows tests/upstream tests/test_*.py
# Tests need these too, each as old as may be. The first two are named because their later releases don't fit
# the oldest LangGraph and SQLite saver, which don't say so.
LOWEST_TOOLS := langgraph-prebuilt==1.0.2 'aiosqlite<0.22' 'langchain-anthropic>=1.0' 'langchain-openai>=1.0' \
	'blockbuster>=1.5.20' 'hypothesis>=6.100' 'pycryptodome>=3.20' \
	'pytest>=9' 'pytest-asyncio>=1.3' 'pytest-timeout>=2.4' 'pytest-xdist>=3.8'

demo: $(READY)  ## a runaway agent, without a budget and with one
	.venv/bin/graphguard demo --yes

test: $(READY)  ## all tests
	$(PYTEST)

dev: $(READY)  ## the graphs in examples/ on a LangGraph server of this machine; Studio opens in the browser
	GRAPHGUARD_LEDGER=$${GRAPHGUARD_LEDGER-$(CURDIR)/graphguard-ledger.sqlite} LANGSMITH_TRACING=$${LANGSMITH_TRACING-false} \
		.venv/bin/langgraph dev --host 127.0.0.1 $(DEV)

docs: $(READY)  ## the examples in the README, docs/ and docstrings
	$(PYTEST) tests/test_docs.py

site: $(READY)  ## the pages in docs/ with the reference, as a site in build/site
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo 'open build/site/index.html'

notebooks: $(READY)  ## run the notebooks and keep what they show
	.venv/bin/python notebooks/run.py

check: $(READY)  ## style, types, and whether the lock fits pyproject.toml
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	cp requirements.lock .venv/requirements.lock
	$(LOCK) -o .venv/requirements.lock
	diff -u requirements.lock .venv/requirements.lock || { echo 'requirements.lock is behind: make lock'; exit 1; }

bench: $(READY)  ## what a guard costs beside the bare graph, and a ledger beside the bare database, as ratios
	.venv/bin/python benchmarks/calls.py
	.venv/bin/python benchmarks/ledger.py
	.venv/bin/python benchmarks/langsmith_guards.py

soak: $(READY)  ## storms of kill -9 on the durable ledgers, and the tests that take long; half an hour
	GRAPHGUARD_SOAK=1 $(PYTEST) tests/laws tests/history/test_cost.py tests/test_report_of_runs.py
	.venv/bin/python -m tests.soak.storm --ledger sqlite --kills 1000
	.venv/bin/python -m tests.soak.storm --ledger postgres --kills 1000

compat: lowest newest  ## the tests against the oldest and the newest releases of LangGraph, LangChain, LangSmith and all else

lowest: $(LOWEST)/ready  ## the tests against the oldest releases that pyproject.toml allows; what needs newer ones is skipped
	$(LOWEST)/bin/pytest -n $(WORKERS) --dist worksteal -W ignore $(COMPAT)

newest: $(READY)  ## the tests against the newest releases that there are, whatever requirements.lock says
	@set -eu; \
	uv=uv; uv --version >/dev/null 2>&1 || uv=.venv/bin/uv; \
	echo 'setting up $(NEWEST) ...'; \
	$$uv venv --quiet --allow-existing --python .venv/bin/python $(NEWEST); \
	$$uv pip install --quiet --python $(NEWEST)/bin/python --upgrade --group dev --editable '.[langchain,langsmith,postgres,server]'
	$(NEWEST)/bin/pytest -n $(WORKERS) --dist worksteal $(COMPAT)

lock: $(READY)  ## requirements.lock after a change of pyproject.toml; UPGRADE=1 takes the newest of everything
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements.lock

clean:  ## what these words have made
	rm -rf .venv .venv-lowest .venv-newest .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# uv is used if the machine has one; if not, pip puts the locked one into .venv. Nothing outside is touched.
$(READY): pyproject.toml requirements.lock
	@set -eu; \
	uv=uv; uv --version >/dev/null 2>&1 || uv=.venv/bin/uv; \
	if .venv/bin/python -c '' 2>/dev/null && $$uv --version >/dev/null 2>&1; then :; \
	elif [ $$uv = uv ]; then \
		uv venv --quiet --allow-existing --python '$(or $(PYTHON),>=3.11,<3.14)' .venv; \
	else \
		$(or $(PYTHON),python3) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
			{ echo 'Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12'; exit 1; }; \
		$(or $(PYTHON),python3) -m venv .venv; \
		.venv/bin/python -m pip install --quiet "$$(grep -o '^uv==[^ ]*' requirements.lock)"; \
	fi; \
	echo 'setting up .venv ...'; \
	$$uv pip sync --quiet --python .venv/bin/python requirements.lock; \
	$$uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@

$(LOWEST)/ready: $(READY) pyproject.toml
	@set -eu; \
	uv=uv; uv --version >/dev/null 2>&1 || uv=.venv/bin/uv; \
	echo 'setting up $(LOWEST) ...'; \
	$$uv venv --quiet --clear --python .venv/bin/python $(LOWEST); \
	$$uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--editable '.[langchain,langsmith]' $(LOWEST_TOOLS)
	@touch $@
