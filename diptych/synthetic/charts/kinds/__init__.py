"""One file, one kind of chart; the contract stands in `kind.py`."""
