"""Read the strings under a node's fields: the descriptions in the schema."""

import ast
import inspect
import textwrap
from itertools import pairwise

from finetune.config.base import Node


def descriptions(node: type[Node]) -> dict[str, str]:
    """Return the description of each field of a node by name, inherited fields included.

    pydantic can read these strings too, but would do so for every class at every start.
    """
    found: dict[str, str] = {}
    # From the base down: a subclass may describe an inherited field anew.
    for kind in reversed(node.__mro__):
        if issubclass(kind, Node):
            found |= _own_descriptions(kind)
    return {name: found[name] for name in node.model_fields if name in found}


def _own_descriptions(kind: type[Node]) -> dict[str, str]:
    """Return the strings that directly follow a field in the source of a class."""
    # Python keeps no strings under fields; only the source has them.
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
