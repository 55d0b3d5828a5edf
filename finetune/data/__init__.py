"""Samples: from sources of any kind to batches of tensors.

Two entries: `opening.py` opens the data of a run, from its sources to parts with encoded targets;
`prepare.py` turns the parts into samples that can be fetched. Shared types lie beside the
folders: a `table.py` has columns (numbers, `images.py`, `audio.py`, `ragged.py` for sequences,
`vectors.py`), `column_kinds.py` says of what kind each one is, and `batches.py` is made of
`samples.py`.

The folders, in the order in which data passes through them. Between folders, each one imports only
from those before it; files beside them import from several of them, and several from those files:
`readers` (formats of tables), `hashes` (is it what was seen before?), `media` (one image or
recording), `targets`, `sources` (anything as one table), `identify` (what a run knows of its data),
`parts` (training, validation, test), `steps` (transforms), `loading` (how batches are made and
fetched) and `incoming` (new samples for a trained network).
"""
