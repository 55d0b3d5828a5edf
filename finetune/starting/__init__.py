"""A config to begin with, from a look at the data: what `finetune init` proposes.

`found_data` finds out what a file or folder holds, `judged_columns` what each column is,
`chosen_columns` what is learnt from what, `chosen_network` and `chosen_sizes` by which network
and how long. `proposal` puts these together, and `config_text` writes them as a commented YAML
file. Every choice comes with its reason, which is told to the user.
"""
