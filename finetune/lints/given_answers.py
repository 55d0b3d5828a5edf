"""Note on a target that the network is given among its inputs."""

from finetune.config.run import RunConfig
from finetune.freezing.lints import Lint


def given_answers(config: RunConfig) -> tuple[Lint, ...]:
    """Return a note on a target column that is an input as well; nothing if it is none.

    It is no error: an autoencoder learns what it is given. Several target columns among the inputs
    are refused where they are joined.
    """
    data = config.data
    if not isinstance(data.target, str) or data.target not in (data.inputs or ()):
        return ()
    return (
        Lint(
            ("data", "inputs"),
            f"the target {data.target!r} is among the inputs too: the network is given what it "
            "must predict",
            "leave it out of data.inputs, unless the network is to reproduce its input",
        ),
    )
