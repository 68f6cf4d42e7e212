"""The only training loop.

CLIP to VILA differ in objective, in what learns, in data and budget, not in the loop. It
runs on Accelerate (several processes, bf16, trackers). Accumulation is by samples: however a
step is cut into micro-batches or ranks, loss and gradients are those of the whole step.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diptych.data.reading.ledger import Ledger
from diptych.errors import (
    ConfigError,
    DataChanged,
    DataError,
    Interrupted,
    StartChanged,
)
from diptych.machine import memory_bytes
from diptych.model import trainable
from diptych.model.architecture import Model
from diptych.model.tensors import save_tensors
from diptych.model.trainable import Group, Witness
from diptych.model.tuning import tuned
from diptych.progress import Progress
from diptych.staging import staged_folder
from diptych.train import (
    feature_cache,
    identity,
    optimizer,
    processes,
    resume,
    together,
)
from diptych.train.claim import working_in
from diptych.train.feed import StepData, feed
from diptych.train.journal import Journal, available, for_trackers, of_all
from diptych.train.resume import Position
from diptych.train.stage import Stage
from diptych.train.stage_data import StageData
from diptych.train.step_losses import StepLosses

log = logging.getLogger(__name__)

EvaluateHook = Callable[[Model, str, int], dict[str, float]]
"""(model, stage, step) -> figures for metrics.jsonl; called every `evaluate_every_steps`."""


class Scheduled(Protocol):
    """Evaluations on a schedule of their own."""

    def is_due(self, step: int) -> bool:
        """Whether to measure after so many optimizer steps, counted over all stages."""
        ...

    def is_missing(self, step: int) -> bool:
        """Whether one is due after that step that a stopped run did not come to."""
        ...

    def at(self, model: Model, step: int) -> dict[str, float]:
        """Measure; figures for metrics.jsonl."""
        ...


class Learner(nn.Module):
    """Model and objective as one module, so that data parallelism wraps both."""

    def __init__(self, model: Model, objective: nn.Module):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.objective(self.model, batch)


class Trainer:
    """Runs the stages of a recipe in a run folder, and resumes them.

    Args:
        model: changed in place; ends in evaluation mode.
        stages: in order.
        run: run folder; `metrics.jsonl`, `ledger.json`, `parameters.json`, `checkpoints/`
            and the data indexes are written there.
        seed: of data order and everything random.
        evaluate: hook for evaluation during training.
        trackers: names that Accelerate knows (tensorboard, wandb, mlflow).
        progress: progress display.
        cache: folder of feature caches.
        origins: what the model was composed from, as names and hashes; a run that goes on is held
            to them.
        accept_changed: where data, tokenizer or weights changed behind a stopped stage, start it
            anew with them as they are now.
        moved: the data lie elsewhere than when the run began, so finished stages must find in
            theirs what they learned from.
        recipe: the whole recipe as plain data, for trackers; they name the run as its folder is.
        scheduled: evaluations that are due after so many steps of the run. Where there are several
            processes, one alone is given them, and the others wait.

    Raises:
        Interrupted: SIGTERM or SIGINT came; everything is saved and the same call resumes.
        DataChanged, StartChanged: what the stopped stage read is not what it was.
        RunTaken: another process works in the run folder.
        ProcessesDisagree: processes are counted differently.
        ProcessLost: another process ended without a word; what it raised, all raise.
        TooManyRejects, LossNotFinite, NothingLearns, FrozenPartMoved: see errors.
    """

    def __init__(
        self,
        model: Model,
        stages: Sequence[Stage],
        run: Path,
        *,
        seed: int = 0,
        evaluate: EvaluateHook | None = None,
        trackers: Sequence[str] = ("tensorboard",),
        progress: Progress | None = None,
        cache: Path | None = None,
        origins: Mapping[str, str] | None = None,
        accept_changed: bool = False,
        moved: bool = False,
        recipe: Mapping[str, Any] | None = None,
        scheduled: Scheduled | None = None,
    ):
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        self.model = model
        self.stages = stages
        self.run = run
        self.seed = seed
        self.evaluate = evaluate
        self.progress = progress or Progress()
        self.cache = cache or run / "cache"
        self.origins = dict(origins or {})
        self.accept_changed = accept_changed
        self.moved = moved
        self.recipe = dict(recipe or {})
        self.scheduled = scheduled
        precisions = {s.precision for s in stages}
        if len(precisions) > 1:
            raise ConfigError(
                "the stages differ in precision", where="stages", fix="use one for the whole run"
            )
        self.precision = precisions.pop()
        mixed_precision = "bf16" if self.precision == "bf16" else "no"
        # Accelerate keeps the first run's precision for the process and refuses another.
        if (
            AcceleratorState._shared_state.get("_mixed_precision", mixed_precision)
            != mixed_precision
        ):
            AcceleratorState._reset_state()
        processes.start()
        self.accelerator = Accelerator(
            cpu=processes.on_cpu(),
            mixed_precision=mixed_precision,
            log_with=[t for t in trackers if available(t)] or None,
            project_dir=str(run),
            # A part may hold weights that an objective does not use (a pooler, the layers behind
            # the embeddings); their gradients are not waited for.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.position = Position()
        self.tuning = tuned(self.accelerator.device)
        self._stopping = False
        self._reading = False
        self._validated = Ledger()
        self.data = StageData(model, self.accelerator, run, self.cache, seed, self.progress)
        self.journal = Journal(run, self.progress, self.accelerator.is_main_process)

    # -- the run ----------------------------------------------------------------------------

    def train(self) -> Model:
        """Run (or resume) every stage; returns the model, its weights in their configured dtype."""
        first = self.accelerator.is_main_process
        with processes.one_fate(), working_in(self.run) if first else nullcontext():
            return self._train()

    def _train(self) -> Model:
        torch.manual_seed(self.seed)
        self.tuning.begin()
        self.run.mkdir(parents=True, exist_ok=True)
        named = {"wandb": {"name": self.run.name}, "mlflow": {"run_name": self.run.name}}
        self.accelerator.init_trackers(
            "diptych", config=for_trackers({"run": self.run.name, **self.recipe}), init_kwargs=named
        )
        self.model.to(self.accelerator.device)
        checkpoint = resume.newest(self.run / "checkpoints")
        if checkpoint is not None:
            self.position = resume.position_of(checkpoint)
            log.info("resuming from checkpoint %s", checkpoint.name)
        previous = {}
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            previous = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            for number, stage in enumerate(self.stages):
                if number < self.position.stage:
                    # Adapters of finished stages must exist before weights are loaded.
                    trainable.apply(self.model, stage.learn, stage.learning_rate)
                    self._check_finished(number, stage)
                    continue
                self._run_stage(number, stage, checkpoint)
                checkpoint = None
        except _StoppedReading:
            raise self._interrupted("before the first step of this start") from None
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            for tracker in self.accelerator.trackers:
                tracker.finish()  # `end_training` would end the processes' group, too
        if checkpoint is not None:
            resume.load_weights(
                checkpoint / "weights.safetensors", Learner(self.model, nn.Module())
            )
        trainable.hold_precision(self.model, {})
        return self.model.eval()

    def _run_stage(self, number: int, stage: Stage, checkpoint: Path | None) -> None:
        torch.manual_seed(self.seed + 1000 * (number + 1))
        if self._stopping:
            raise self._interrupted(f"before stage {stage.name}")
        self._reading = True
        # Before an objective copies a part, as BLIP does: the copy's steps are not rounded either.
        trainable.hold_precision(self.model, stage.learn)
        objective = stage.objective.build(self.model)
        whole = not (objective.splits or objective.gathers)
        if whole and self.accelerator.num_processes > 1:
            raise ConfigError(
                f"the {stage.objective.name} objective runs on one process",
                where=f"stages.{stage.name}.objective",
            )
        groups = trainable.apply(self.model, stage.learn, stage.learning_rate, objective)
        learner = Learner(self.model, objective).to(self.accelerator.device)
        names = {id(p): n for g in groups for n, p in g.parameters.items()}
        stepper = optimizer.build(groups, stage)
        indexes, read = self.data.open(stage, stage.data)
        held_out, held_read = self.data.open(stage, stage.validation)
        self._validated = Ledger()
        contents = identity.of_stage(stage, indexes, held_out)
        if checkpoint is not None and self.position.step > 0:
            checkpoint = self._agreeing(number, stage, checkpoint, contents)
        start = self.position.step
        if checkpoint is not None and start == 0:
            # Saved at the end of the stage before: this one starts with its own random state.
            resume.load_weights(checkpoint / "weights.safetensors", learner)
        elif checkpoint is not None:
            self._restore(number, checkpoint, learner, stepper, names)
        if start == 0:
            witness = Witness(self.model, groups)
            belongs = self._belongings(number, contents, witness.frozen)
        else:
            witness, belongs = None, self.position.belongs[stage.name]
        if stage.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        ledger = Ledger()
        answers = (i[row].answer.strip() for i in indexes for row in range(len(i)))
        objective.prepare(answers, self.cache / "texts", self.progress)
        data, num_steps, cached = self.data.steps(
            number, stage, indexes, objective, belongs.get("cached")
        )
        self.journal.parameters(self.model, stage, groups)
        wrapped, stepper = self.accelerator.prepare(learner, stepper)
        state = _StageState(
            stage, number, learner, wrapped, stepper, groups, names, ledger, witness
        )
        validation = self.data.validation(stage, held_out, objective)
        if start == 0:
            self._draw_apart(number, 0)
            self.position = replace(
                Position(stage=number),
                ledgers=self.position.ledgers,
                seconds=self.position.seconds,
                steps_before=self.position.steps_before,
                belongs=self.position.belongs,
            )
            shutil.rmtree(self._best_folder(number), ignore_errors=True)
        elif self.accelerator.is_main_process:
            # What all processes counted before; from here on each one counts its own share.
            state.ledger = Ledger.from_dict(self.position.ledgers[stage.name])
        self.position.belongs[stage.name] = {**belongs, "cached": cached}
        self.journal.cut(stage.name, start)
        self._reading = False
        if not self.position.stage_ended:
            self._run_steps(state, data, range(start, num_steps), num_steps, validation)
        best = self._best_folder(number) / "weights.safetensors"
        if stage.keep_best and best.is_file():
            resume.load_weights(best, learner)
        ledger = of_all(state.ledger)
        ledger.check()
        # What became of the rows when they were read, and of every visit in training.
        counted = {**ledger.to_dict(), "data": read.to_dict()}
        if held_out:  # when they were read, and in the last look at them
            looked = of_all(self._validated).to_dict()
            counted["validation"] = {**looked, "data": held_read.to_dict()}
        self.position.ledgers[stage.name] = counted
        if self.accelerator.is_main_process:
            self.journal.write("ledger.json", {"stages": self.position.ledgers})
            self.progress.note(read.table(f"stage {stage.name}: rows read"))
            self.progress.note(ledger.table(f"stage {stage.name}: samples in training steps"))
        learned = self._learned(number)
        self.position = Position(
            stage=number + 1,
            ledgers=self.position.ledgers,
            seconds=self.position.seconds,
            steps_before=self.position.steps_before + self.position.step,
            belongs=self.position.belongs,
        )
        if self.accelerator.is_main_process:
            resume.save(self.run / "checkpoints", self.position, learned, None, {})
        processes.wait()
        self.accelerator.free_memory()

    def _run_steps(
        self,
        state: _StageState,
        data: StepData,
        steps: range,
        num_steps: int,
        validation: StepData | None,
    ) -> None:
        stage = state.stage
        self.model.train()
        name = trainable.normalises_over_batch(self.model)
        if name is not None and self.accelerator.is_main_process:
            log.warning(
                "stage %s: %s normalises over the batch, so what is learned depends on "
                "rows_per_batch and the number of processes; keep both when the run goes on. An "
                "encoder without batch normalisation does not (diptych_conv with norm: group)",
                stage.name, name,
            )  # fmt: skip
        if self.scheduled is not None:
            if self.scheduled.is_missing(self.position.steps_before + steps.start):
                self._measure(stage, steps.start)
        last_save = last_line = time.monotonic()
        with self.progress.task(f"train {stage.name}", num_steps, steps.start) as task:
            for step, prepared in zip(steps, feed(data, steps, stage.num_workers), strict=True):
                figures = self._step(state, prepared, step, num_steps)
                seen = any(b.image_keys for b in prepared.batches) or step + 1 == num_steps
                # A step of text alone moves no image part, and that is right.
                if state.witness is not None and seen:
                    moved = state.witness.check()
                    self.journal.groups(self.model, stage, state.groups, moved)
                    state.witness = None
                self.position.step = step + 1
                self.tuning.after_step()
                now = time.monotonic()
                figures["seconds"] = now - last_line
                figures["tokens_per_second"] = figures["real_tokens"] / max(1e-9, now - last_line)
                self.position.seconds += now - last_line
                last_line = now
                self.journal.step(stage, step + 1, num_steps, figures)
                self._track(figures, step + 1)
                task.advance(f"loss {figures['loss']:.3f}")
                last = step + 1 == num_steps
                due = stage.evaluate_every_steps and (step + 1) % stage.evaluate_every_steps == 0
                if due or (last and stage.evaluate_every_steps):
                    if self._evaluate(state, validation, step + 1):
                        self.position.stage_ended = True
                if self._is_due(step + 1) and self._measure(stage, step + 1):
                    last_line = time.monotonic()  # a step's speed is that of training
                every = stage.checkpoint_every_steps
                if every:
                    save_now = (step + 1) % every == 0
                else:
                    save_now = now - last_save > stage.checkpoint_every_seconds
                stopping = self._any_rank_stops()
                if (save_now or stopping or self.position.stage_ended) and not last:
                    self._save(state)
                    last_save = time.monotonic()
                if stopping and not last:
                    raise self._interrupted(
                        f"at step {step + 1} of {num_steps} in stage {stage.name}"
                    )
                if self.position.stage_ended:
                    return

    def _step(self, state: _StageState, prepared: Any, step: int, num_steps: int) -> dict[str, Any]:
        """One optimizer step over all micro-batches; returns figures for the log."""
        stage, accelerator = state.stage, self.accelerator
        objective: Any = state.learner.objective
        state.ledger.add(prepared)
        weights = [objective.weight(b) for b in prepared.batches]
        (
            total_weight,
            num_targets,
            real_tokens,
            area,
            num_samples,
            num_rejected,
            num_idle,
        ) = processes.summed(
            self.accelerator,
            sum(weights),
            prepared.num_targets,
            sum(b.num_real_tokens for b in prepared.batches),
            sum(b.segment_ids.numel() for b in prepared.batches),
            len(prepared.used),
            state.ledger.num_rejected,
            0.0 if prepared.batches else 1.0,
        )
        if num_rejected > stage.max_reject_share * num_steps * stage.global_batch_size:
            of_all(state.ledger).enforce(0.0)
        # Every rank says so; one that waited for the others' gradients would wait for ever.
        self._refuse_idle(num_idle, f"at step {step + 1} of stage {stage.name}")
        factor = stage.schedule.factor(step, num_steps)
        rate = optimizer.set_rate(state.optimizer, factor)
        found = StepLosses()
        # Data parallelism averages gradients over ranks; ours are sums over one total.
        scale = accelerator.num_processes / max(total_weight, 1.0)
        for number, batch in enumerate(prepared.batches):
            last = number + 1 == len(prepared.batches)
            with (
                nullcontext() if last else accelerator.no_sync(state.wrapped),
                self.tuning.attention(self.model, batch, self.precision),
            ):
                losses = state.wrapped(batch.to(accelerator.device))
                accelerator.backward(sum(losses.values()) * scale)
            found.add(batch, losses)
        parameters = [p for g in state.groups for p in g.parameters.values()]
        limit = stage.max_gradient_norm
        clipped = accelerator.clip_grad_norm_(parameters, limit if limit else math.inf)
        (norm,) = found.fetch(torch.as_tensor(clipped))
        named = {n: v / max(total_weight, 1.0) for n, v in found.sums(accelerator).items()}
        if not all(map(math.isfinite, (norm, *named.values()))):
            found.refuse(norm, f"step {step + 1} of stage {stage.name}")
        if state.witness is not None:
            state.witness.gradients()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if accelerator.is_main_process:
            objective.watch(named, round(total_weight))
        return {
            "loss": sum(named.values()),
            "losses": named,
            "learning_rate": rate,
            "learning_rates": {g.name: g.learning_rate * factor for g in state.groups},
            "gradient_norm": norm,
            "samples": int(num_samples),
            "real_tokens": int(real_tokens),
            "supervised_tokens": int(num_targets),
            "padding_share": 1 - real_tokens / area if area else 0.0,
            "memory_bytes": memory_bytes(),
        }

    def _refuse_idle(self, num_idle: float, when: str) -> None:
        """Raise where some processes have nothing to exchange and others do."""
        if 0 < num_idle < self.accelerator.num_processes:
            raise DataError(
                f"{num_idle:.0f} of {self.accelerator.num_processes} processes have no usable "
                f"sample {when}",
                fix="use larger batches, or see what is rejected with `diptych data check`",
            )

    # -- looking ----------------------------------------------------------------------------

    @torch.no_grad()
    def _evaluate(self, state: _StageState, validation: StepData | None, step: int) -> bool:
        """Validation loss, keep-best and early stop; True means the stage ends here."""
        figures: dict[str, float] = {}
        self.model.eval()
        stop = False
        objective: Any = state.learner.objective
        if validation is not None and validation.num_samples:
            steps = range(math.ceil(validation.num_samples / validation.batch_size))
            weight, found = 0.0, StepLosses()
            self._validated = Ledger()
            for prepared in feed(validation, steps, 0):
                self._validated.add(prepared)
                if objective.gathers:
                    (num_idle,) = processes.summed(self.accelerator, float(not prepared.batches))
                    self._refuse_idle(num_idle, f"in the validation data of {state.stage.name}")
                for batch in prepared.batches:
                    with feature_cache.autocast(self.model.device, self.precision):
                        losses = state.learner(batch.to(self.model.device))
                    found.add(batch, losses)
                    weight += objective.weight(batch)
            found.fetch()
            total, weight = processes.summed(self.accelerator, found.total, weight)
            loss = total / max(weight, 1.0)
            figures["validation_loss"] = loss
            if self.position.best_loss is None or loss < self.position.best_loss:
                self.position.best_loss, self.position.num_worse = loss, 0
                if state.stage.keep_best and self.accelerator.is_main_process:
                    with staged_folder(self._best_folder(state.number)) as folder:
                        save_tensors(self._learned(state.number), folder / "weights.safetensors")
            else:
                self.position.num_worse += 1
            patience = state.stage.early_stop_patience
            stop = patience is not None and self.position.num_worse >= patience
        if self.evaluate is not None:
            figures.update(self.evaluate(self.model, state.stage.name, step))
        self.model.train()
        if self.accelerator.is_main_process and figures:
            self._noted(state.stage, step, figures)
        return stop

    def _is_due(self, step: int) -> bool:
        """Whether an evaluation is due after this step of the stage."""
        total = self.position.steps_before + step
        return self.scheduled is not None and self.scheduled.is_due(total)

    def _measure(self, stage: Stage, step: int) -> bool:
        """The evaluations after a step; whether they were measured.

        A run that is asked to stop does not wait for them: it measures when it goes on.
        """
        assert self.scheduled is not None, "something is due"
        if self._stopping:
            return False
        total = self.position.steps_before + step
        self.model.eval()
        self._reading = True
        try:
            figures = self.scheduled.at(self.model, total)
        except _StoppedReading:
            return False
        finally:
            self._reading = False
            self.model.train()
        self._noted(stage, step, figures)
        return True

    def _noted(self, stage: Stage, step: int, figures: dict[str, float]) -> None:
        """Write down what was measured after a step."""
        self.journal.add({"stage": stage.name, "step": step, **figures})
        self._track(figures, step)
        log.info("%s", " ".join(f"{k}={v:.4f}" for k, v in figures.items()))

    def _track(self, figures: dict[str, Any], step: int) -> None:
        """Send the numbers among `figures` to the trackers."""
        flat = {k: v for k, v in figures.items() if isinstance(v, int | float)}
        # Stages follow each other on one axis.
        self.accelerator.log(flat, step=self.position.steps_before + step)

    # -- what the run's state belongs to ----------------------------------------------------

    def _belongings(self, number: int, contents: Any, known: Mapping[str, bytes]) -> dict[str, Any]:
        """What a checkpoint of this stage says it belongs to; see `Position.belongs`.

        Args:
            known: hashes of tensors, by name, that need not be computed again.
        """
        resting = {
            name: known.get(name) or trainable.digest(tensor)
            for name, tensor in self.model.state_dict().items()
            if not self._has_learned(name, number)
        }
        return {
            "data": contents,
            "text": identity.of_text(self.model),
            "weights": identity.of_weights(resting),
            "origins": self.origins,
        }

    def _agreeing(self, number: int, stage: Stage, checkpoint: Path, contents: Any) -> Path | None:
        """The checkpoint to go on from: this one where it belongs to what is there now.

        Where it does not and that is accepted, the one that the stage began with, if any.
        """
        belongs = self._belongings(number, contents, {})
        known = self.position.belongs.get(stage.name)
        try:
            identity.check_data(stage.name, known and known["data"], contents)
            identity.check_start(stage.name, known or {}, belongs)
            return checkpoint
        except (DataChanged, StartChanged) as error:
            if not self.accept_changed:
                raise
            log.warning("%s; the stage starts anew", error.what)
        folder = self.run / "checkpoints"
        begun = resume.start_of(folder, number)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            resume.forget(folder, number)
        seconds = self.position.seconds
        self.position = Position(stage=number) if begun is None else resume.position_of(begun)
        self.position.seconds = seconds
        return begun

    def _check_finished(self, number: int, stage: Stage) -> None:
        """Warn where the data of a finished stage are not what it learned from.

        Raises:
            DataChanged: the recipe names another place for data, and they differ.
            StartChanged: the run goes on from the end of this stage, and what it learned beside
                is not there any more.
        """
        known = self.position.belongs.get(stage.name)
        if known is None:
            return
        if number + 1 == self.position.stage and self.position.step == 0:
            try:
                identity.check_start(stage.name, known, self._belongings(number, known["data"], {}))
            except StartChanged as error:
                if not self.accept_changed:
                    raise
                log.warning("%s; the run goes on with it as it is now", error.what)
        try:
            opened = [self.data.open(stage, c)[0] for c in (stage.data, stage.validation)]
        except DataError as error:
            log.warning("the data of finished stage %s: %s", stage.name, error.what)
            return
        now = identity.of_stage(stage, *opened)
        if self.moved:
            identity.check_finished(stage.name, known["data"], now, self.run)
        elif changed := identity.changes(known["data"], now):
            log.warning(
                "stage %s is finished and learned from data that changed since: %s",
                stage.name, "; ".join(changed),
            )  # fmt: skip

    # -- saving and stopping ----------------------------------------------------------------

    def _draw_apart(self, number: int, step: int) -> None:
        """Every process but the first, whose stream one process has alone, draws numbers of its
        own: dropout of different samples is independent."""
        if rank := self.accelerator.process_index:
            torch.manual_seed(self.seed + 1000 * (number + 1) + 104_729 * rank + 7 * step)

    def _restore(
        self, number: int, checkpoint: Path, learner: Learner, stepper: Any, names: dict[int, str]
    ) -> None:
        """Go on from a checkpoint in the middle of a stage."""
        rank, num = self.accelerator.process_index, self.accelerator.num_processes
        written = resume.load(checkpoint, learner, stepper, names, rank=rank)
        if rank >= written:
            self._draw_apart(number, self.position.step)
        if written != num and self.accelerator.is_main_process:
            log.warning(
                "checkpoint %s was written by %d processes and %d go on: what is drawn at random "
                "in the model (dropout) differs from a run that was not stopped",
                checkpoint.name, written, num,
            )  # fmt: skip

    def _best_folder(self, number: int) -> Path:
        return self.run / "checkpoints" / f"best-{number:02d}"

    def _has_learned(self, name: str, number: int) -> bool:
        """Whether any stage up to this one may have changed the model's tensor of that name."""
        part = name.split(".", 1)[0]
        hows = {s.learn[part].how for s in self.stages[: number + 1] if part in s.learn}
        return "full" in hows or ("lora" in hows and "lora_" in name)

    def _learned(self, number: int) -> dict[str, Tensor]:
        """Weights that any stage up to this one may have changed, by learner name."""
        tensors = {
            f"model.{name}": tensor.detach().cpu()
            for name, tensor in self.model.state_dict().items()
            if self._has_learned(name, number)
        }
        return resume.without_aliases(tensors)

    def _save(self, state: _StageState) -> None:
        self.position.ledgers[state.stage.name] = of_all(state.ledger).to_dict()
        drawing = processes.gathered(resume.random_state())
        if self.accelerator.is_main_process:
            learned = self._learned(state.number)
            objective = state.learner.objective.state_dict()
            learned |= {f"objective.{n}": t.detach().cpu() for n, t in objective.items()}
            inner = getattr(state.optimizer, "optimizer", state.optimizer)
            start = time.monotonic()
            path = resume.save(
                self.run / "checkpoints", self.position, learned, inner, state.names, drawing
            )
            log.info("saved checkpoint %s in %.1f s", path.name, time.monotonic() - start)
        processes.wait()

    def _stop(self, signum: int, frame: Any) -> None:
        together.raise_if_failed()  # a launcher stops all when one has failed
        if self._stopping and signum == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: stop without saving
        self._stopping = True
        if self._reading:
            # Reading data and encoding pictures may take hours; neither has anything to save.
            raise _StoppedReading
        os.write(2, b"\nstopping: the step is finished and saved first\n")

    def _interrupted(self, where: str) -> Interrupted:
        fix = "run the same command again to resume"
        return Interrupted(f"stopped {where}; everything is saved", where=str(self.run), fix=fix)

    def _any_rank_stops(self) -> bool:
        return bool(processes.summed(self.accelerator, float(self._stopping))[0])


class _StoppedReading(BaseException):
    """Raised where a stop signal finds the run; no error, so that nobody takes it for a bad row."""


@dataclass
class _StageState:
    """What belongs together while a stage runs."""

    stage: Stage
    number: int
    learner: Learner
    wrapped: Any
    optimizer: Any
    groups: list[Group]
    names: dict[int, str]
    ledger: Ledger
    witness: Witness | None
