"""New samples for a trained network: what `predict`, `eval` and `serve` are given.

`incoming_places.py` says which files of a place are tables or samples, `incoming_pieces.py` reads
them piece by piece, and `prepare_inputs.py` takes them through the steps of evaluation.
`named_data.py` reads data with targets that the command line names.
"""
