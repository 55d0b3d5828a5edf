"""Training, validation and test: which samples are in which part, and in which order.

`raw_data.py` reads the columns in use, `split_source.py` divides them, `parting.py` encodes their
targets, and `epoch_order.py` says which samples an epoch draws.
"""
