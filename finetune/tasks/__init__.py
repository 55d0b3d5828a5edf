"""Tasks: what a network learns of its outputs, how it is measured, and what predictions say.

`build_task.py` builds the task that a config names. A task (`task.py`) has losses, metrics and a
reader, and one file puts them together: `classification.py`, `multilabel.py`, `regression.py`,
`token_classification.py`, `span.py`, `segmentation.py`, `detection.py`, `similarity.py`,
`imported.py`. A loss gives a sum and the count of what it adds up (`losses.py`); the mean over a
window is taken in one place (`window_mean.py`). A metric says which way it improves and when it is
not defined (`metrics.py`, `conditions.py`); those that are running sums are our own
(`running_metrics.py`), others are classes of torchmetrics (`torch_metrics.py`). A label is
predicted from a threshold on (`thresholds.py`). A reader turns outputs into records, one a sample
(`records.py`), some of which are pictures (`mask_records.py`). Several tasks over one network are
one task (`task_list.py`), in which each sees its own output and target (`views.py`).
"""
