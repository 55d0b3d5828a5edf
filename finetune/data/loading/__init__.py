"""How samples are made and fetched as batches, here or by worker processes.

`ready.py` chooses: finished columns are gathered (`gathered_samples.py`), other samples are made as
they are fetched (`made_samples.py`, by the rules of `sample_maker.py`). `workers.py` does so in
processes of torch's `DataLoader`.
"""
