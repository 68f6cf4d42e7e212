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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.data.ledger import Ledger
from diptych.errors import ConfigError, DataError, Interrupted, LossNotFinite
from diptych.machine import KeptMemory, memory_bytes
from diptych.model import trainable
from diptych.model.architecture import Model
from diptych.model.checkpoint import save_tensors, staged_folder
from diptych.model.trainable import Group, Witness
from diptych.progress import Progress
from diptych.train import attention, feature_cache, optimizer, resume
from diptych.train.feed import StepData, feed
from diptych.train.journal import Journal
from diptych.train.resume import Position
from diptych.train.stage import Stage
from diptych.train.stage_data import StageData

log = logging.getLogger(__name__)

EvaluateHook = Callable[[Model, str, int], dict[str, float]]
"""(model, stage, step) -> figures for metrics.jsonl; called every `evaluate_every_steps`."""


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

    Raises:
        Interrupted: SIGTERM or SIGINT came; everything is saved and the same call resumes.
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
        self.accelerator = Accelerator(
            mixed_precision=mixed_precision,
            log_with=[t for t in trackers if _available(t)] or None,
            project_dir=str(run),
            # A part may hold weights that an objective does not use (a pooler, the layers behind
            # the embeddings); their gradients are not waited for.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.position = Position()
        self.memory: KeptMemory | None = None
        self._stopping = False
        self.data = StageData(model, self.accelerator, run, self.cache, seed, self.progress)
        self.journal = Journal(run, self.progress, self.accelerator.is_main_process)

    # -- the run ----------------------------------------------------------------------------

    def train(self) -> Model:
        """Run (or resume) every stage; returns the model."""
        torch.manual_seed(self.seed)
        if self.accelerator.device.type == "cpu":
            self.memory = KeptMemory()
        self.run.mkdir(parents=True, exist_ok=True)
        self.accelerator.init_trackers("diptych", config={})
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
                    continue
                self._run_stage(number, stage, checkpoint)
                checkpoint = None
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
            self.accelerator.end_training()
        if checkpoint is not None:
            resume.load_weights(
                checkpoint / "weights.safetensors", Learner(self.model, nn.Module())
            )
        return self.model.eval()

    def _run_stage(self, number: int, stage: Stage, checkpoint: Path | None) -> None:
        torch.manual_seed(self.seed + 1000 * (number + 1))
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
        if checkpoint is not None and self.position.step == 0:
            # Saved at the end of the stage before: this one starts with its own random state.
            resume.load_weights(checkpoint / "weights.safetensors", learner)
        elif checkpoint is not None:
            resume.load(checkpoint, learner, stepper, names)
        if stage.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        indexes, read = self.data.open(stage, stage.data)
        ledger = Ledger()
        answers = (i[row].answer.strip() for i in indexes for row in range(len(i)))
        objective.prepare(answers, self.cache / "texts", self.progress)
        data, num_steps = self.data.steps(number, stage, indexes, objective)
        self.journal.parameters(self.model, stage, groups)
        wrapped, stepper = self.accelerator.prepare(learner, stepper)
        state = _StageState(stage, number, learner, wrapped, stepper, groups, names, ledger)
        validation = self.data.validation(stage, objective)
        start = self.position.step
        if start == 0 or checkpoint is None:
            start = 0
            self.position = replace(
                Position(stage=number),
                ledgers=self.position.ledgers,
                seconds=self.position.seconds,
                steps_before=self.position.steps_before,
            )
            shutil.rmtree(self._best_folder(number), ignore_errors=True)
        else:
            ledger = Ledger.from_dict(self.position.ledgers[stage.name])
            state.ledger = ledger
        self.journal.cut(stage.name, start)
        if not self.position.stage_ended:
            self._run_steps(state, data, range(start, num_steps), num_steps, validation)
        best = self._best_folder(number) / "weights.safetensors"
        if stage.keep_best and best.is_file():
            resume.load_weights(best, learner)
        ledger = state.ledger
        ledger.check()
        # What became of the rows when they were read, and of every visit in training.
        self.position.ledgers[stage.name] = {**ledger.to_dict(), "data": read.to_dict()}
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
        )
        if self.accelerator.is_main_process:
            resume.save(self.run / "checkpoints", self.position, learned, None, {})
        self.accelerator.wait_for_everyone()
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
        witness = None
        if steps.start == 0:
            witness = Witness(self.model, state.groups)
        last_save = last_line = time.monotonic()
        with self.progress.task(f"train {stage.name}", num_steps, steps.start) as task:
            for step, prepared in zip(steps, feed(data, steps, stage.num_workers), strict=True):
                figures = self._step(state, prepared, step, num_steps)
                seen = any(b.image_keys for b in prepared.batches) or step + 1 == num_steps
                # A step of text alone moves no image part, and that is right.
                if witness is not None and seen:
                    moved = witness.check()
                    self.journal.groups(self.model, stage, state.groups, moved)
                    witness = None
                self.position.step = step + 1
                if self.memory is not None:
                    self.memory.after_step()
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
                    raise Interrupted(
                        f"stopped at step {step + 1} of {num_steps} in stage {stage.name}; "
                        "everything is saved",
                        where=str(self.run),
                        fix="run the same command again to resume",
                    )
                if self.position.stage_ended:
                    return

    def _step(self, state: _StageState, prepared: Any, step: int, num_steps: int) -> dict[str, Any]:
        """One optimizer step over all micro-batches; returns figures for the log."""
        stage, accelerator = state.stage, self.accelerator
        objective: Any = state.learner.objective
        state.ledger.add(prepared)
        if state.ledger.num_rejected > stage.max_reject_share * num_steps * stage.global_batch_size:
            state.ledger.enforce(0.0)
        weights = [objective.weight(b) for b in prepared.batches]
        local = torch.tensor(
            [
                sum(weights),
                sum(b.num_real_tokens for b in prepared.batches),
                0.0 if prepared.batches else 1.0,
            ],
            dtype=torch.float64,
            device=accelerator.device,
        )
        total_weight, real_tokens, num_idle = accelerator.reduce(local, "sum").tolist()
        if 0 < num_idle < accelerator.num_processes:
            # Every rank says so; one that waited for the others' gradients would wait for ever.
            raise DataError(
                f"{num_idle:.0f} of {accelerator.num_processes} processes have no usable sample "
                f"at step {step + 1} of stage {stage.name}",
                fix="use larger batches, or see what is rejected with `diptych data check`",
            )
        factor = stage.schedule.factor(step, num_steps)
        rate = optimizer.set_rate(state.optimizer, factor)
        sums: dict[str, float] = {}
        # Data parallelism averages gradients over ranks; ours are sums over one total.
        scale = accelerator.num_processes / max(total_weight, 1.0)
        for number, batch in enumerate(prepared.batches):
            last = number + 1 == len(prepared.batches)
            with (
                _no_sync_unless(last, accelerator, state.wrapped),
                attention.chosen(self.model, batch, self.precision),
            ):
                losses = state.wrapped(batch.to(accelerator.device))
                loss = sum(losses.values()) * scale
                if not torch.isfinite(loss):
                    raise LossNotFinite(
                        f"the loss is {loss.item()} at step {step + 1} of stage {stage.name}",
                        where=", ".join(batch.sample_ids[:4]),
                        fix="lower the learning rate, or look at these samples",
                    )
                accelerator.backward(loss)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
        parameters = [p for g in state.groups for p in g.parameters.values()]
        limit = stage.max_gradient_norm
        norm = float(accelerator.clip_grad_norm_(parameters, limit if limit else math.inf))
        if not math.isfinite(norm):
            raise LossNotFinite(
                f"the gradient norm is {norm} at step {step + 1} of stage {stage.name}",
                where=", ".join(prepared.used[:4]),
                fix="lower the learning rate, or look at these samples",
            )
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        named = {
            n: accelerator.reduce(torch.tensor(v, device=accelerator.device), "sum").item()
            / max(total_weight, 1.0)
            for n, v in sorted(sums.items())
        }
        if accelerator.is_main_process:
            objective.watch(named, round(total_weight))
        area = sum(b.segment_ids.numel() for b in prepared.batches)
        local_tokens = sum(b.num_real_tokens for b in prepared.batches)
        return {
            "loss": sum(named.values()),
            "losses": named,
            "learning_rate": rate,
            "learning_rates": {g.name: g.learning_rate * factor for g in state.groups},
            "gradient_norm": norm,
            "samples": len(prepared.used),
            "real_tokens": int(real_tokens),
            "supervised_tokens": int(total_weight) if objective.splits else 0,
            "padding_share": 1 - local_tokens / area if area else 0.0,
            "memory_bytes": memory_bytes(),
        }

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
            total = weight = 0.0
            for prepared in feed(validation, steps, 0):
                for batch in prepared.batches:
                    with feature_cache.autocast(self.model.device, self.precision):
                        losses = state.learner(batch.to(self.model.device))
                    total += sum(v.item() for v in losses.values())
                    weight += objective.weight(batch)
            sums = torch.tensor(
                [total, weight], dtype=torch.float64, device=self.accelerator.device
            )
            total, weight = self.accelerator.reduce(sums, "sum").tolist()
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
            self.journal.add({"stage": state.stage.name, "step": step, **figures})
            self._track(figures, step)
            log.info("%s", " ".join(f"{k}={v:.4f}" for k, v in figures.items()))
        return stop

    def _track(self, figures: dict[str, Any], step: int) -> None:
        """Send the numbers among `figures` to the trackers."""
        flat = {k: v for k, v in figures.items() if isinstance(v, int | float)}
        # Stages follow each other on one axis.
        self.accelerator.log(flat, step=self.position.steps_before + step)

    # -- saving and stopping ----------------------------------------------------------------

    def _best_folder(self, number: int) -> Path:
        return self.run / "checkpoints" / f"best-{number:02d}"

    def _learned(self, number: int) -> dict[str, Tensor]:
        """Weights that any stage up to this one may have changed, by learner name."""
        prefixes: set[str] = set()
        adapters: set[str] = set()
        for stage in self.stages[: number + 1]:
            for part, how in stage.learn.items():
                (prefixes if how.how == "full" else adapters).add(f"{part}.")
        tensors = {}
        for name, tensor in self.model.state_dict().items():
            part = name.split(".", 1)[0] + "."
            if part in prefixes or (part in adapters and "lora_" in name):
                tensors[f"model.{name}"] = tensor.detach().cpu()
        return _without_aliases(tensors)

    def _save(self, state: _StageState) -> None:
        self.position.ledgers[state.stage.name] = state.ledger.to_dict()
        if self.accelerator.is_main_process:
            learned = self._learned(state.number)
            objective = state.learner.objective.state_dict()
            learned |= {f"objective.{n}": t.detach().cpu() for n, t in objective.items()}
            inner = getattr(state.optimizer, "optimizer", state.optimizer)
            start = time.monotonic()
            path = resume.save(self.run / "checkpoints", self.position, learned, inner, state.names)
            log.info("saved checkpoint %s in %.1f s", path.name, time.monotonic() - start)
        self.accelerator.wait_for_everyone()

    def _stop(self, signum: int, frame: Any) -> None:
        if self._stopping and signum == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: stop without saving
        self._stopping = True
        os.write(2, b"\nstopping: the step is finished and saved first\n")

    def _any_rank_stops(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self._stopping
        flag = torch.tensor(int(self._stopping), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())


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


def _no_sync_unless(last: bool, accelerator: Any, wrapped: nn.Module) -> Any:
    from contextlib import nullcontext

    return nullcontext() if last else accelerator.no_sync(wrapped)


def _without_aliases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, torch.Size]] = set()
    kept = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept


def _available(tracker: str) -> bool:
    from importlib.util import find_spec

    if find_spec(tracker) is None:
        log.warning("tracker %s is not installed and left out (pip install %s)", tracker, tracker)
        return False
    return True
