"""Steps that samples go through, from raw values to what the network takes.

`transforms.py` makes each step of a config and says which columns it takes and gives;
`pipeline.py` runs them over whole columns where they are the same in each epoch. Steps that learn
from the training samples are in `fitted_steps.py`, those on texts in `tokenizing.py`, those on
images in `vision.py`.
"""
