"""Wire the parts of a run into its trainer: the only caller of `Trainer(...)`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch.optim import Optimizer

from finetune.activations.cache import ActivationCache
from finetune.activations.estimate import Use
from finetune.activations.rank_agreement import Agreement
from finetune.config.run import RunConfig
from finetune.config.train import CheckpointConfig
from finetune.freezing.origins import Sources
from finetune.freezing.plan import Plan
from finetune.freezing.proof import fingerprints
from finetune.freezing.rows import RowSlices
from finetune.importing import code_by_package
from finetune.optim.groups import Group, build_optimizer, make_groups
from finetune.optim.rates import Rates
from finetune.runs.background import Worker
from finetune.runs.disk_space import Room
from finetune.runs.folder import RunFolder
from finetune.runs.kept import Checkpoints
from finetune.runs.progress import Progress
from finetune.tasks.window_mean import WindowMean
from finetune.tracking.tracker import Tracker
from finetune.train.average import Average
from finetune.train.block_figures import BlockFigures
from finetune.train.build import evaluation_batch_size
from finetune.train.built import Parts
from finetune.train.cache_use import cache_use
from finetune.train.checkpoints.compatibility import Compatibility
from finetune.train.checkpoints.delta import Base
from finetune.train.clock import Clock
from finetune.train.ending import EndOfRun
from finetune.train.evaluator import Evaluator
from finetune.train.gradients import norm_of
from finetune.train.guard import StepGuard
from finetune.train.looks.looking import Looking
from finetune.train.looks.looking_of_run import looking_of_run
from finetune.train.loop import Splits, Trainer
from finetune.train.precision import Precision
from finetune.train.proving import Prover
from finetune.train.ranks.alike import Alike
from finetune.train.ranks.rank_lines import RankLines
from finetune.train.ranks.shards import Shards
from finetune.train.ranks.shared_passes import SharedPasses
from finetune.train.ranks.synced_norm import SyncedNorms
from finetune.train.recovery import Recovery
from finetune.train.saver import Saver
from finetune.train.sharing import Sharing
from finetune.train.shown.reporter_of_run import reporter_of_run
from finetune.train.shown.reporting import Reporter
from finetune.train.shown.run_documents import documents_of
from finetune.train.sizes import checkpoint_bytes, optimizer_state
from finetune.train.step_figures import StepMeter
from finetune.train.stepper import Stepper
from finetune.train.stopping import Stop
from finetune.train.timeline import Timeline, steps_of_epoch
from finetune.train.train_metrics import measures_of_steps
from finetune.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class _Shared:
    """What several collaborators of a run use; each of them gets only the fields that it needs."""

    parts: Parts
    optimizer: Optimizer
    timeline: Timeline
    precision: Precision
    cache: ActivationCache
    average: Average
    reporter: Reporter
    clock: Clock
    sharing: Sharing


def wire(
    config: RunConfig, parts: Parts, folder: RunFolder, tracker: Tracker | None, shards: Shards
) -> Trainer:
    """Build the collaborators of a run, each after those that it needs."""
    data, plan, model, link = parts.data, parts.plan, parts.model, shards.link
    # One layout for the whole run: phases freeze by dropping gradients, not by regrouping.
    groups = make_groups(plan.ever_trained, plan.fates, plan.undecayed)
    rows = RowSlices.of(model, plan.ever_trained)
    timeline = _timeline(config, parts, groups)
    folder = replace(folder, documents=documents_of(config, parts, folder))
    lines = RankLines(link)
    reporter = reporter_of_run(config, parts, folder, groups, timeline, tracker, lines)
    precision = Precision(parts.training.precision, parts.device)
    shared = _Shared(
        parts,
        build_optimizer(
            config.optimizer, groups, dict(model.named_parameters()) | rows.slices | shards.parts
        ),
        timeline,
        precision,
        ActivationCache(config.cache, model, _cache_use(config, parts, reporter, shards)),
        Average.of(model, plan, parts.training, shards.parts),
        reporter,
        Clock(timeline, _watchdog(config)),
        _sharing(parts, timeline, precision, lines, shards),
    )
    # Before a checkpoint is loaded: it keeps some weights as they are built.
    # With shards each rank has some weights of each tensor only: no block is told of.
    blocks = BlockFigures.of(model, () if shards.is_on else plan.inventory)
    stepper = _stepper(config, shared, rows, blocks)
    saver = _saver(config, shared, folder)
    sharing = shared.sharing
    looking = looking_of_run(
        config, parts, reporter, sharing, timeline, blocks=blocks, folder=folder
    )
    evaluator = _evaluator(config, shared, looking)
    return Trainer(
        model=model,
        timeline=timeline,
        splits=Splits(data.train, data.validation, data.test),
        cache=shared.cache,
        average=shared.average,
        stepper=stepper,
        evaluator=evaluator,
        saver=saver,
        recovery=Recovery(timeline=timeline, stepper=stepper, saver=saver, reporter=reporter),
        reporter=reporter,
        folder=folder,
        sharing=sharing,
        step=partial(sharing.step, stepper) if sharing.is_several else stepper.step,
        ending=EndOfRun(
            folder=folder,
            timeline=timeline,
            evaluator=evaluator,
            cache=shared.cache,
            saver=saver,
            reporter=reporter,
            stop=sharing.stop,
            writes_page=config.tracking.report and folder.is_written,
        ),
    )


def _sharing(
    parts: Parts, timeline: Timeline, precision: Precision, lines: RankLines, shards: Shards
) -> Sharing:
    """Return what shares the steps of a run between its processes."""
    link = shards.link
    return Sharing(
        link=link,
        model=parts.model,
        timeline=timeline,
        precision=precision,
        stop=Stop(is_several=link.ranks.is_several),
        lines=lines,
        norms=SyncedNorms(link, parts.model, is_wanted=parts.training.sync_norm),
        shards=shards,
        num_losses=len(parts.task.losses),
    )


def _cache_use(config: RunConfig, parts: Parts, reporter: Reporter, shards: Shards) -> Use:
    """Return what the activation cache must know; the first process decides for all."""
    link, world = shards.link, shards.link.ranks.world

    def all_say(statements: Sequence[bool]) -> list[bool]:
        return [count == world for count in link.totals(list(map(float, statements)))]

    agreement = Agreement(shards.is_on, shards.whole_network, all_say, link.of_first)
    return replace(cache_use(config, parts, reporter.message), agreement=agreement)


def _stepper(config: RunConfig, shared: _Shared, rows: RowSlices, blocks: BlockFigures) -> Stepper:
    """Return what makes the optimizer steps."""
    parts, sharing = shared.parts, shared.sharing
    # Mixed samples have no class of their own, and of several processes each sees a part only.
    has_measures = not parts.mixing.nodes and not sharing.is_several
    return Stepper(
        model=parts.model,
        optimizer=shared.optimizer,
        task=parts.task,
        samples=parts.data.train,
        timeline=shared.timeline,
        cache=shared.cache,
        precision=shared.precision,
        rows=rows,
        guard=StepGuard(parts.model, checks_gradients=parts.training.precision != "float16"),
        clock=shared.clock,
        reporter=shared.reporter,
        max_grad_norm=parts.training.max_grad_norm,
        mixing=parts.mixing,
        meter=StepMeter(
            model=parts.model,
            task=parts.task,
            measures=measures_of_steps(parts.task) if has_measures else (),
            blocks=blocks,
            device=shared.precision.device,
            log_gradient_norms=config.task.log_gradient_norms,
        ),
        ranks=sharing.link.ranks,
        new_mean=sharing.mean if sharing.is_several else WindowMean,
        norm_of=sharing.shards.norm if sharing.shards.is_on else norm_of,
    )


def _saver(config: RunConfig, shared: _Shared, folder: RunFolder) -> Saver:
    """Return what saves and loads checkpoints. Call it before one is loaded into the network."""
    plan, model = shared.parts.plan, shared.parts.model
    # The base is the network as built: checkpoints and proofs are differences from it.
    base = Base.of(model, plan)
    prover = Prover(
        model,
        plan,
        folder,
        sources=Sources.of(model, model.weights_reports),
        as_built=base.digests,
        never_trained=base.never_trained,
        trained_as_built=fingerprints(model, plan.ever_trained),
    )
    compatibility = Compatibility(
        model,
        base,
        shared.timeline,
        expected=optimizer_state(plan, config.optimizer, shared.parts.device),
        proven=prover.names,
        loss_scale=shared.precision.state(),
    )
    return Saver(
        model=model,
        optimizer=shared.optimizer,
        timeline=shared.timeline,
        checkpoints=_checkpoints(shared.parts.training.checkpoint, plan, folder, compatibility),
        base=base,
        average=shared.average,
        precision=shared.precision,
        prover=prover,
        clock=shared.clock,
        reporter=shared.reporter,
        alike=Alike(shared.sharing.link, model, lambda: shared.timeline.data),
        shards=shared.sharing.shards,
    )


def _evaluator(config: RunConfig, shared: _Shared, looking: Looking) -> Evaluator:
    """Return what evaluates the splits."""
    link, stop = shared.sharing.link, shared.sharing.stop
    passes = SharedPasses(
        link,
        stop,
        sends_inputs=config.task.has_own_loss,
        meets_in_passes=shared.sharing.shards.is_on,
    )
    return Evaluator(
        cache=shared.cache,
        average=shared.average,
        task=shared.parts.task,
        precision=shared.precision,
        batch_size=evaluation_batch_size(config),
        timeline=shared.timeline,
        reporter=shared.reporter,
        clock=shared.clock,
        stop=stop,
        looking=looking,
        shared=passes if link.ranks.is_several else None,
    )


def _timeline(config: RunConfig, parts: Parts, groups: tuple[Group, ...]) -> Timeline:
    """Return the timeline of a run that has not begun."""
    order = parts.data.order
    identity = parts.data.identity
    digest, validation = identity.training_digest, identity.validation_digest
    epoch_steps = steps_of_epoch(order.count, parts.training)
    code = code_by_package(config.trust)
    begins = Progress(data=digest, validation=validation, code=code, epoch_steps=epoch_steps)
    return Timeline(
        plan=parts.plan,
        settings=parts.training,
        seed=config.seed,
        order=order,
        data=digest,
        validation=validation,
        code=code,
        rates=Rates(config.schedule, groups),
        progress=begins,
    )


def _watchdog(config: RunConfig) -> Watchdog:
    """Return the watchdog of the run, with twice the timeout if worker processes have their own."""
    # A batch that hangs must end by the watchdog of its worker, which prints where it hangs.
    timeout_s = config.train.hang_timeout_s
    return Watchdog(2 * timeout_s if timeout_s and config.data.workers else timeout_s)


def _checkpoints(
    settings: CheckpointConfig, plan: Plan, folder: RunFolder, compatibility: Compatibility
) -> Checkpoints:
    """Return the checkpoints of a run, with the room that they take on the disk."""
    # They are kept beside the last `keep_last`; a phase that restores its best needs one more.
    num_best = (settings.keep_best or 1) if settings.best is not None else 0
    num_best += any(phase.restores_best for phase in plan.phases)
    is_averaged = compatibility.timeline.settings.average is not None
    size = checkpoint_bytes(plan, compatibility.expected, is_averaged=is_averaged)
    return Checkpoints(
        folder.checkpoints,
        settings.keep_last,
        room=Room(size, settings.keep_last + num_best),
        worker=Worker(in_thread=settings.background),
        misfit=compatibility.misfit,
        is_written=folder.is_written,
    )
