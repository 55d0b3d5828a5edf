"""Open the data of a run, as its config says and as its network was pretrained to see it."""

from dataclasses import replace

from finetune.config.run import RunConfig
from finetune.data.hashes.known_files import KnownFiles
from finetune.data.opening import OpenedData, Record, open_data
from finetune.data.parts.drawn import drawn
from finetune.data.prepare import PreparedData, prepare_data
from finetune.data.steps.tokens import TokenStore
from finetune.models.preprocessing import Preprocessing
from finetune.train.before.first_look import refuse_missing


def open_samples(
    config: RunConfig,
    record: Record | None = None,
    most: int | None = None,
    *,
    preprocessing: Preprocessing | None = None,
) -> PreparedData:
    """Open the data of a config and prepare it as the model needs it.

    Args:
        config: The run config.
        record: The run's record of its data, if it has begun.
        most: Upper bound on the samples prepared per split; None for all.
        preprocessing: What the network was pretrained with; None looks it up.

    Raises:
        DataError: the data cannot be read, or does not fit the config.
    """
    keeps = config.cache.use == "auto"
    files = KnownFiles(config.cache.disk_gb) if keeps else None
    if preprocessing is None:
        preprocessing = refuse_missing(config)
    opened = open_raw(config, preprocessing, files, record)
    prepared = prepare_data(
        # Drawn after opening: the facts keep the sizes of all samples, by which steps and costs go.
        opened if most is None else drawn(opened, most, config.seed),
        config.data,
        preprocessing,
        seed=config.seed,
        trust=config.trust,
        views=config.cache.views,
        batch_size=config.train.pass_size,
        hang_timeout_s=config.train.hang_timeout_s,
        tokens=TokenStore(config.cache.disk_gb) if keeps else None,
        fitted=() if record is None else record.fitted,
        # Never on the few samples of a preview: it must show the network that will be trained.
        fit_on=opened.train.table,
    )
    return replace(prepared, notes=(*prepared.notes, *(files.take_notes() if files else ())))


def open_raw(
    config: RunConfig,
    preprocessing: Preprocessing,
    files: KnownFiles | None,
    record: Record | None = None,
) -> OpenedData:
    """Open the data of a config, before any transform.

    Args:
        config: The run config.
        preprocessing: What the network was pretrained with.
        files: Hashes of files from earlier runs, and the place of large tables; None to keep none.
        record: The run's record of its data, if it has begun.

    Raises:
        DataError: the data cannot be read, or does not fit the config.
    """
    return open_data(
        config.data,
        config.task,
        seed=config.seed,
        trust=config.trust,
        files=files,
        head=preprocessing.head,
        record=record,
        limit=config.train.limit,
        preprocessing=preprocessing,
    )
