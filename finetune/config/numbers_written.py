"""Keep the characters of numbers where a config means text, such as cells of a table."""

from dataclasses import replace

from finetune.config.base import AS_WRITTEN, Node
from finetune.config.marks import is_marked, names_of_marked
from finetune.config.written import Written, replaced_at, scalars


def numbers_as_written(root: Written, config: type[Node]) -> Written:
    """Return `root` with numbers as text where the field is marked `AS_WRITTEN`.

    YAML reads an unquoted `1.50` as a number, which is `1.5` once it becomes text again.
    """
    names = names_of_marked(AS_WRITTEN, Node)
    for key, written in scalars(root):
        if written.number is None:
            continue
        # By name first, as following the schema takes long. A number may stand in a list.
        is_named = not names.isdisjoint(str(step) for step in key[-2:])
        if is_named and is_marked(AS_WRITTEN, config, key, root):
            root = replaced_at(root, key, replace(written, value=written.number))
    return root
