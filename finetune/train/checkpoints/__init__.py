"""Checkpoints: what is in one, whether it fits, and how a run resumes from it.

`checkpoint.py` writes and reads, `delta.py` holds what they differ from, `compatibility.py` looks
at everything in one before it is loaded, `resuming.py` chooses one. Only `train/saver.py` calls
them while a run goes on.
"""
