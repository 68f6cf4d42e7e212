"""`python -m diptych`, and `torchrun -m diptych train RECIPE` for several processes."""

from diptych.cli.main import run

if __name__ == "__main__":  # decode workers that are started anew import this file, too
    run()
