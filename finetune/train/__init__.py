"""The training loop, and the wiring that builds a run from its config.

Read in this order. `wire.py` builds a run from its config: `build.py` makes its parts, and
`collaborators.py` hands them to the `Trainer` of `loop.py`: phases outside, steps inside.
`timeline.py` says where the run is and what comes next, `stepper.py` makes a step, `evaluator.py`
evaluates, `saver.py` saves, `proving.py` takes the proof, `recovery.py` goes on after a failed
step, `sharing.py` speaks for several processes.

The folders hold what these use: `before` (checks), `ranks` (several processes), `looks` (pictures
of evaluations), `checkpoints`, `shown` (terminal and trackers), `after` (a trained run). None of
them imports another one that imports it.
"""
