"""The command line: one thin function per verb, put together here."""

from collections.abc import Callable

import typer

from finetune.cli.beginning import init_command
from finetune.cli.caching import cache_command
from finetune.cli.certifying_runs import certify_command
from finetune.cli.checking import inspect_command, plan_command, schema_command, validate_command
from finetune.cli.comparing import diff_command
from finetune.cli.completing import complete_at_the_first_tab
from finetune.cli.doctoring import doctor_command
from finetune.cli.endings import refuse_removed_folder, told
from finetune.cli.exporting_runs import export_command
from finetune.cli.options import main_options
from finetune.cli.overview import runs_command
from finetune.cli.predicting import predict_command
from finetune.cli.reporting_runs import report_command
from finetune.cli.running import eval_command, tensorboard_command, train_command
from finetune.cli.serving import serve_command
from finetune.cli.showing import show_command
from finetune.cli.sweeps import sweep_command
from finetune.cli.verbs import Verbs
from finetune.visible import visible_streams

app = typer.Typer(
    name="finetune",
    cls=Verbs,
    help="Fine-tune a PyTorch network from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(main_options)
complete_at_the_first_tab()

_VERBS: dict[str, list[tuple[Callable[..., None], str]]] = {
    "Before a run": [
        (init_command, "finetune init data.csv --target price"),
        (validate_command, "finetune validate config.yaml"),
        (plan_command, "finetune plan config.yaml -o train.epochs=3"),
        (inspect_command, "finetune inspect config.yaml"),
        (show_command, "finetune show freeze.phases.until"),
        (schema_command, "finetune schema > schema.json"),
    ],
    "Run": [
        (train_command, "finetune train config.yaml --run runs/first"),
        (sweep_command, "finetune sweep config.yaml --trials 24"),
    ],
    "Use a run": [
        (eval_command, "finetune eval runs/first new.csv"),
        (predict_command, "finetune predict runs/first new.csv --out predicted.jsonl"),
        (export_command, "finetune export runs/first --format safetensors --out exported"),
        (certify_command, "finetune certify runs/first --out first.json"),
        (serve_command, "finetune serve runs/first runs/second --port 8000"),
    ],
    "Look at runs": [
        (runs_command, "finetune runs"),
        (report_command, "finetune report runs/first runs/second"),
        (diff_command, "finetune diff runs/first runs/second"),
        (tensorboard_command, "finetune tensorboard runs"),
    ],
    "Check and clear": [
        (doctor_command, "finetune doctor runs/first"),
        (cache_command, "finetune cache ls"),
    ],
}
"""The verbs by what a person is about to do, in the order of a project, each with an example."""

for _group, _verbs in _VERBS.items():
    for _verb, _example in _verbs:
        _summary = (_verb.__doc__ or "").partition("\n")[0]
        app.command(
            _verb.__name__.removesuffix("_command"),
            rich_help_panel=_group,
            short_help=f"{_summary}\n{_example}",
            epilog=f"Example: {_example}",
        )(_verb)


def main() -> None:
    """Run the command that the arguments name; a failure exits with its code."""
    # The streams come first: whatever `told` prints about an error must be made visible too.
    with visible_streams(), told():
        refuse_removed_folder()
        app()
