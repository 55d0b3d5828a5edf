"""The command line: one thin function per verb, put together here."""

import typer

from finetune.cli.caching import cache_command
from finetune.cli.checking import inspect_command, plan_command, schema_command, validate_command
from finetune.cli.comparing import diff_command
from finetune.cli.doctoring import doctor_command
from finetune.cli.endings import refuse_removed_folder, told
from finetune.cli.options import main_options
from finetune.cli.overview import runs_command
from finetune.cli.reporting_runs import report_command
from finetune.cli.running import eval_command, predict_command, tensorboard_command, train_command
from finetune.cli.verbs import Verbs
from finetune.visible import visible_streams

app = typer.Typer(
    name="finetune",
    cls=Verbs,
    help="Fine-tune a PyTorch network from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback()(main_options)
app.command("validate")(validate_command)
app.command("plan")(plan_command)
app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("predict")(predict_command)
app.command("inspect")(inspect_command)
app.command("schema")(schema_command)
app.command("cache")(cache_command)
app.command("doctor")(doctor_command)
app.command("report")(report_command)
app.command("runs")(runs_command)
app.command("diff")(diff_command)
app.command("tensorboard")(tensorboard_command)


def main() -> None:
    """Run the command that the arguments name; a failure exits with its code."""
    # The streams come first: whatever `told` prints about an error must be made visible too.
    with visible_streams(), told():
        refuse_removed_folder()
        app()
