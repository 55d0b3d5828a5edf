"""Texts of the files that a run folder begins with: config, plan, facts about the data."""

import json
from dataclasses import asdict

from finetune.config.dumping import dump_config
from finetune.config.run import RunConfig
from finetune.freezing.report import plan_as_data
from finetune.runs.folder import RunFolder
from finetune.train.built import Parts


def documents_of(config: RunConfig, parts: Parts, folder: RunFolder) -> dict[str, str]:
    """Return the text of the files that a run folder begins with, by file name."""
    facts = asdict(parts.data.facts) | {
        "specs": {name: asdict(spec) for name, spec in parts.data.specs.items()},
        "identity": parts.data.identity.as_document(),
    }
    directions = parts.task.directions
    # Without validation samples no figure is watched; the directions are those of the test, too.
    watched = parts.training.checkpoint.best or (parts.data.validation and directions.main())
    figures = {"main": watched, "better": directions.by_name()}
    return {
        "config.yaml": dump_config(config, folder.path),
        "plan.json": json.dumps(plan_as_data(parts.plan) | {"figures": figures}, indent=1) + "\n",
        "data.json": json.dumps(facts, indent=1) + "\n",
    }
