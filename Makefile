.PHONY: check test demo format

check:  ## lint, format, types, fast tests
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -n 2 -q -m "not slow"

test:  ## all tests
	python -m pytest -n 2

demo:  ## the main job
	palimpsest demo

format:
	ruff check --fix .
	ruff format .
