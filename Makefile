# Each target is one Python command, which works on every system without make: see `make help`.
PYTHON ?= python3

.PHONY: help demo test check docs bench bench-methods library test-lowest test-vllm
help demo test check docs bench bench-methods library test-lowest test-vllm:
	@$(PYTHON) tasks.py $@
