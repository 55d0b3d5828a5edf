"""A config to fill in for each task, kept as a file of its own in `templates/`."""

from importlib.resources import files

from finetune.errors import FinetuneError, did_you_mean


def template_names() -> list[str]:
    """Return the names of all templates, sorted."""
    folder = files("finetune.starting").joinpath("templates")
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name[0] != "."
    )


def template_text(name: str) -> str:
    """Return the template of a task.

    Raises:
        FinetuneError: there is none of that name.
    """
    known = template_names()
    if name not in known:
        hint = did_you_mean(name, known) or f"known are {', '.join(known)}"
        raise FinetuneError(f"no template {name!r}", hint=hint)
    return files("finetune.starting").joinpath(f"templates/{name}.yaml").read_text("utf-8")
