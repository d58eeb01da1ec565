"""What one implementation is asked: its update on a batch, once to see what it does, then for its time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lite_medrl.tools.bench.case import Case, Job
from lite_medrl.tools.bench.counts import counted
from lite_medrl.tools.bench.memory import peak_gib
from lite_medrl.tools.bench.rollouts import labelled, rollouts
from lite_medrl.tools.bench.shapes import SHAPES
from lite_medrl.tools.bench.trainers import make_trainer, model_for_loss, note_on
from lite_medrl.tools.bench.weights import make_base, with_lora
from lite_medrl.train.batches import number_groups

# Old log-probs are the model's own plus this much noise, as after some updates: the loss then depends on
# every log-prob, and hardly a ratio meets the clip range, where rounding would decide.
OLD_NOISE = 0.05
IMAGE_FIELDS = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")


class Step:
    """A trainer, its model and its batches, ready to run a phase again and again."""

    def __init__(self, job: Job) -> None:
        self.job, self.case, self.device = job, job.case, torch.device(job.case.device)
        if self.case.threads:
            torch.set_num_threads(self.case.threads)
        base = make_base(
            SHAPES[self.case.shape],
            device=self.device,
            dtype=getattr(torch, self.case.dtype),
            quantised=self.case.quantised,
            seed=self.case.seed,
        )
        peft = with_lora(base, seed=self.case.seed)
        self.trainer = make_trainer(job.impl, job.phases[0], peft, self.case, Path(job.folder) / "trainer")
        self.model = model_for_loss(self.trainer, job.impl)
        self.batches: dict[str, dict[str, Any]] = {}

    def warm_up(self, phase: str) -> None:
        """A small step: what is compiled, looked up or checked once is done then."""
        small = replace(self.case, prompt=32, response=4, questions_per_image=1)
        self.run(phase, self.handed(phase, self.batch(phase, small)))

    def look(self, phase: str) -> dict[str, Any]:
        """Peak memory, counts, loss and a note; log-probs or gradients are saved for comparison."""
        batch = self.batch(phase, self.case)
        if phase == "update":
            batch["old_per_token_logps"] = self.old_logps(batch)
        batch = self.batches[phase] = self.handed(phase, batch)
        self.trainer.model.zero_grad(set_to_none=True)
        results: list[Tensor] = []
        peak = peak_gib(lambda: results.append(self.run(phase, batch)), self.device)
        torch.save(self.tensors(phase, results[0], batch), self.job.tensors(phase))
        loss = results[0]
        if phase == "old_logp":
            loss = -results[0][batch["completion_mask"].bool()].mean()
        note = note_on(self.job.impl, self.model)
        return {"phase": phase, "peak_gib": peak, "loss": float(loss), "note": note} | self.counts(phase)

    def seconds(self, phase: str) -> float:
        """How long a step takes until the device is done."""
        self.synchronise()
        begin = time.perf_counter()
        self.run(phase, self.batches[phase])
        self.synchronise()
        return time.perf_counter() - begin

    def batch(self, phase: str, case: Case) -> dict[str, Any]:
        """Rollouts or labelled rows, on the device."""
        made = labelled(case) if phase == "sft" else rollouts(case)
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in made.items()}

    def handed(self, phase: str, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as the trainer's own loop hands it to the loss: ours numbers groups, images once each."""
        ours = self.job.impl.startswith("lite-medrl")
        return number_groups(batch, self.case.generations) if ours and phase == "update" else batch

    def old_logps(self, batch: dict[str, Any]) -> Tensor:
        """The same for all implementations: the first one's log-probs and seeded noise, kept in a file."""
        path = Path(self.job.folder) / "old.pt"
        if not path.exists():
            logp_BC = self.forward("old_logp", batch).float().cpu()
            noise_BC = torch.randn(logp_BC.shape, generator=torch.Generator().manual_seed(self.case.seed))
            torch.save(logp_BC + OLD_NOISE * noise_BC, path)
        return torch.load(path).to(self.device)

    def run(self, phase: str, batch: dict[str, Any]) -> Tensor:
        """A whole step; gradients are in the parameters afterwards."""
        self.trainer.model.zero_grad(set_to_none=True)
        result = self.forward(phase, batch)
        if phase != "old_logp":
            result.backward()
        return result.detach()

    def forward(self, phase: str, batch: dict[str, Any]) -> Tensor:
        """The loss, or log-probs [B, C] without gradient, each called as TRL's loop calls it."""
        trainer: Any = self.trainer
        if phase != "old_logp":
            count = (batch["labels"] != -100).sum() if phase == "sft" else batch["num_items_in_batch"]
            with trainer.compute_loss_context_manager():
                return trainer.compute_loss(self.model, dict(batch), num_items_in_batch=count)
        from trl.models.utils import disable_gradient_checkpointing

        args = [torch.cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1) for k in ("ids", "mask")]
        options = trainer.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(trainer.model, options):
            logp_BC, _, _ = trainer._get_per_token_logps_and_entropies(
                self.model,
                *args,
                batch["completion_ids"].shape[1],
                batch_size=len(args[0]),
                **{key: batch[key] for key in IMAGE_FIELDS},
            )
        return logp_BC

    def tensors(self, phase: str, result: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is compared with other implementations: log-probs, or the gradients of the last step."""
        if phase == "old_logp":
            return {"logp": (result.float() * batch["completion_mask"]).cpu()}
        named = self.trainer.model.named_parameters()
        return {name: p.grad.float().cpu() for name, p in named if p.grad is not None}

    def counts(self, phase: str) -> dict[str, int]:
        """What a forward pass puts through the model."""
        with counted(self.trainer.model) as found:
            self.forward(phase, self.batches[phase])
        return dict(found)

    def synchronise(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
