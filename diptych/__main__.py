"""`python -m diptych`."""

from diptych.cli.main import run

run()
