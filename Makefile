# Everything runs from .venv, which `make setup` makes; nothing has to be activated.
# A sourced ROS or another environment must not leak into it: it holds its own.
CLEANLY := env -u PYTHONPATH -u PYTHONHOME -u VIRTUAL_ENV -u AMENT_PREFIX_PATH -u LD_LIBRARY_PATH
TESTS ?= .
WORKERS ?= 2
# A test process that hangs in native code sees no signal: it is ended, with all its tracebacks.
HANGS := -o faulthandler_timeout=1000 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

.PHONY: help setup demo test test-ros base-policy lint clean
help: ## this list
	@echo "hapo_ros: make TARGET"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## make .venv: ROS 2, PyTorch, the simulation and hapo_ros, 3.5 GB or more; quick when nothing changed
	@bash scripts/setup.sh

demo: setup ## the whole loop in simulation: no robot, no GPU, no ROS needed
	@$(CLEANLY) .venv/bin/hapo demo

test: setup ## the tests, against the installed package (TESTS=test_messages.py for some, WORKERS=0 one by one)
	@cd test && $(CLEANLY) ../.venv/bin/python -m pytest --ignore=ros -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	$(HANGS) $(TESTS)

test-ros: ## the tests that need ROS 2's launch: after `colcon build`, with its setup.bash sourced
	@cd test && python3 -c "import launch_pytest, rclpy, hapo_ros.msg" || { echo "launch_pytest or hapo_ros is not \
	importable. Source ROS 2 and the workspace (. install/setup.bash), then run make test-ros again."; exit 1; }
	@cd test && python3 -m pytest -v ros

base-policy: setup ## make the shipped base policy anew, into runs/base, and compare (20 minutes)
	@$(CLEANLY) .venv/bin/python benchmarks/base_policy.py

soak: setup ## half an hour in real time with cameras and faults; what grows goes into docs/soak.json
	@$(CLEANLY) .venv/bin/python benchmarks/soak.py --record docs/soak.json

lint: setup ## ruff, as pre-commit runs it
	@.venv/bin/ruff check . && .venv/bin/ruff format --check .

clean: ## remove .venv and caches; recordings and checkpoints stay
	rm -rf .venv .setup.lock .pytest_cache .ruff_cache test/.hypothesis .hypothesis
	find hapo_ros test -name __pycache__ -type d -prune -exec rm -rf {} +
