"""The model architectures, and `architectures.py`, the table of them."""
