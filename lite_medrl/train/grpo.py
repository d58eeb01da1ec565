"""`GRPOTrainer`: TRL's, with whole groups kept together, what answers share computed once, and our generator,
score and loss.

A drop-in: same constructor, `GRPOConfig`, reward functions and columns. TRL keeps the loop, the sampler, the
rewards and the advantages. It differs in these places: rows are not shuffled across groups; each group's
images are processed and kept once; groups whose completions all got the same reward are left out of the
update (their gradient is zero) and counted, or replaced by fresh ones (`resample_rounds`); answers come from
`model.generate`; log-probs of the policy, the old policy and the reference from `model.score`, which
packs them into prefix trees; the loss from `medrl_kernels.grpo_loss`. LoRA weights stay in fp32.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl import GRPOTrainer as TRLGRPOTrainer

from lite_medrl.model.encode import check_left_padded
from lite_medrl.model.generate import Sampling, generate
from lite_medrl.model.pack_check import require_packable
from lite_medrl.model.score import Scored, score
from lite_medrl.train.batches import (
    TOKEN_KEYS,
    Batch,
    grouped_rows,
    live_groups,
    number_groups,
    replace_groups,
    rewarded_alike,
    split_rows,
)
from lite_medrl.train.config import rollout_options, tree_options
from lite_medrl.train.guards import (
    drops_out,
    refuse_foreign,
    refuse_ignored,
    refuse_processes,
    refuse_tools,
    restore,
    trainable,
)
from lite_medrl.train.image_order import ImageOrder, images_of_rows
from lite_medrl.train.once import OncePerGroup, as_tensor
from lite_medrl.train.parity import Guard, compute_dtype
from lite_medrl.train.streams import images_of_prompts, prompt_keys
from medrl_kernels import grpo_loss
from medrl_kernels.dispatch import OWN_OPTIONS, foreign_options

# Options of GRPOConfig with the one value that this trainer has; another would change the loss unseen, or
# (the second set) what is sampled.
ONLY = {"use_adaptive_entropy": False, "router_aux_loss_coef": None}
ONLY_IN_OUR_GENERATOR = {
    "generation_kwargs": None,
    "use_transformers_continuous_batching": False,
}


class GRPOTrainer(TRLGRPOTrainer):
    """TRL's GRPOTrainer on shared prompts; see the module."""

    # What TRL and transformers set; their own annotations are wider than what is there after construction.
    args: Any
    model: Any
    num_generations: Any
    num_generations_eval: Any
    max_completion_length: Any
    _tokenizer: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = trainable(kwargs.get("model", args[0] if args else None))
        super().__init__(*args, **kwargs)
        restore(self.model, values)
        refuse_ignored(self.args, ONLY if self.use_vllm else ONLY | ONLY_IN_OUR_GENERATOR)
        refuse_foreign(self.args, foreign_options(self.loss_type))
        refuse_processes(self.accelerator.num_processes)
        if tree_options(self.args)["prefix_tree"] == "required":
            require_packable(self.model)
        self._resample_rounds = getattr(self.args, "resample_rounds", 0)
        refuse_tools(self.tools)
        if self._resample_rounds and not hasattr(self.train_dataset, "__len__"):
            raise ValueError(
                "resample_rounds: fresh prompts are drawn at random, which needs a Dataset, not a stream"
            )
        self._spare, self._round = random.Random(self.args.seed), 0
        self._parity = Guard()
        # Answers drawn by others, or scored under dropout, are not the policy's to the last digit.
        self._own_rollouts = not (self.use_vllm or self.rollout_func or drops_out(self.model))

    # --- rollout
    # ------------------------------------------------------------------------------------------------
    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], Any, dict[str, Any]]:
        """Templates and image processing once per group instead of once per completion."""
        size = self._group_size(len(prompts))
        prompt_ids, images, fields = super()._tokenize_prompts(prompts[::size])
        if isinstance(self.processing_class, OncePerGroup):
            self.processing_class.keep(fields, len(prompts) // size)
        images = [i for i in images for _ in range(size)] if images is not None else None
        return [ids for ids in prompt_ids for _ in range(size)], images, fields

    def _generate_single_turn(
        self,
        prompt_ids: list[Any],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids and sampling log-probs of every completion; vLLM and tools go TRL's own way."""
        if self.use_vllm or self.tools:
            size = self._group_size(len(prompt_ids))
            fields = {key: repeat_rows(value, size) for key, value in multimodal_fields.items()}
            return super()._generate_single_turn(prompt_ids, images, fields, num_generations, has_tool_images)
        size = self._group_size(len(prompt_ids))
        inputs = left_padded(prompt_ids[::size], self._tokenizer.pad_token_id)
        inputs |= {
            key: left_pad(value, 0) if key in TOKEN_KEYS else as_tensor(value)
            for key, value in multimodal_fields.items()
        }
        inputs = {key: value.to(self.accelerator.device) for key, value in inputs.items()}
        sampling = Sampling(
            self.max_completion_length, self.temperature, self.top_p, self.top_k or 0, self.min_p,
            self.repetition_penalty, tuple(getattr(self.args, "stop", None) or ()),
        )  # fmt: skip
        model = self.accelerator.unwrap_model(self.model_wrapped)
        shown = images_of_prompts(inputs, images[::size] if images else None, len(inputs["input_ids"]))
        # Rounds of one step draw from streams of their own.
        keys_P = [key + (self._round << 32) for key in prompt_keys(prompt_ids[::size], shown)]
        with self.accelerator.autocast():
            groups = generate(
                model,
                self.processing_class,
                inputs,
                num_generations=size,
                sampling=sampling,
                seed=self.args.seed,
                step=self._step,
                keys_P=keys_P,
                **rollout_options(self.args),
            )
        flat = [completion for group in groups for completion in group]
        # The model's own log-probs, which the update computes again: those after truncation and bans are
        # higher, and an importance ratio against them is biased.
        return [list(c.token_ids) for c in flat], [list(c.logps) for c in flat]

    def _group_size(self, rows: int) -> int:
        """Rows that are copies of one prompt; environments may give each row a prompt of its own."""
        if getattr(self, "environment_factories", None) is not None:
            return 1
        size = self.num_generations if self.model.training else self.num_generations_eval
        return size if rows % size == 0 else 1

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's, or the same over rows in the order of their images."""
        dataset = self.train_dataset if dataset is None else dataset
        if not getattr(self.args, "group_by_image", False):
            return super()._get_train_sampler(dataset)
        shuffled, self.shuffle_dataset = self.shuffle_dataset, False
        try:
            places = super()._get_train_sampler(dataset)
        finally:
            self.shuffle_dataset = shuffled
        return ImageOrder(places, images_of_rows(dataset), self.args.seed)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's buffering without its shuffle, so that a group stays in one piece."""
        if not self.model.training:
            return self._scored(generation_batch, self.num_generations_eval)
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = self._scored(generation_batch, self.num_generations)
            self._buffered_inputs = split_rows(self._resampled(batch), steps)
        return self._buffered_inputs[self._step % steps]

    def _scored(self, generation_batch: Any, size: int) -> Batch:
        """A numbered generation batch; groups whose rewards are equal get an advantage of exactly 0."""
        with self._processing_once_per_group(len(generation_batch)):
            found = self._generate_and_score_completions(generation_batch)
        self._parity.on = self._own_rollouts
        batch = number_groups(found, self._group_size(len(found["prompt_ids"])))
        if self.multi_objective_aggregation != "sum_then_normalize":
            return batch  # there the advantage is relative to the batch, not to the group alone
        equal_B = rewarded_alike(batch["advantages"], size)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["frac_reward_zero_std"][-1] = float(equal_B.float().mean())
        return {**batch, "advantages": batch["advantages"].masked_fill(equal_B, 0.0)}

    @contextmanager
    def _processing_once_per_group(self, rows: int) -> Iterator[None]:
        """TRL hands the processor every row; meanwhile it looks at one row of each group."""
        size, processor = self._group_size(rows), self.processing_class
        if size > 1 and not self.tools:
            self.processing_class = OncePerGroup(processor, size)
        try:
            yield
        finally:
            self.processing_class = processor

    def _resampled(self, batch: Batch) -> Batch:
        """The batch with silent groups replaced by fresh ones that are not, where the config asks for it."""
        replaced = 0
        for number in range(1, self._resample_rounds + 1):
            self._round = number
            silent = [g for g, live in enumerate(live_groups(batch)) if not live]
            if not silent:
                break
            rows = self._spare.sample(
                range(len(self.train_dataset)), min(len(silent), len(self.train_dataset))
            )
            asked = [self.train_dataset[i] for i in rows for _ in range(self.num_generations)]
            fresh = self._scored(asked, self.num_generations)
            live = [g for g, found in enumerate(live_groups(fresh)) if found]
            batch = replace_groups(batch, silent[: len(live)], fresh, live)
            replaced += len(live)
        self._round = 0
        if self._resample_rounds:
            batch = {**batch, "num_items_in_batch": batch["completion_mask"].sum()}
            self._metrics["train"]["groups_resampled"].append(float(replaced))
        return batch

    # --- update
    # -------------------------------------------------------------------------------------------------
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's loss of these rows, computed from one pass over every distinct prompt."""
        if return_outputs:
            raise ValueError("GRPOTrainer does not return outputs")
        if "tool_mask" in inputs:
            raise NotImplementedError("completions with tool results (tool_mask) are not supported yet")
        mask_BC, advantage_B = inputs["completion_mask"].bool(), inputs["advantages"]
        keep_B, weight = self._rows_with_gradient(inputs)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["frac_rows_skipped"].append(1 - float(keep_B.float().mean()))
        if not keep_B.any():
            return torch.stack([p.sum() * 0.0 for p in self.model.parameters() if p.requires_grad]).sum()
        result = self._score(model, inputs, keep_B, with_entropy=True)
        self._metrics[mode]["prefix_tree/saving"].append(result.separate_tokens / result.tokens)
        packed = {
            name: inputs[key][keep_B][mask_BC[keep_B]] if key in inputs else None
            for name, key in {
                "old": "old_per_token_logps",
                "ref": "ref_per_token_logps",
                "sampling": "sampling_per_token_logps",
            }.items()
        }
        if self._parity.on and packed["sampling"] is not None:
            rescored_N = result.logp_N.detach() if packed["old"] is None else packed["old"]
            dtype = compute_dtype(self.model, self.accelerator.mixed_precision)
            gap = self._parity(packed["sampling"], rescored_N, dtype)
            self._metrics[mode]["sampling/logp_gap"].append(gap)
        length_B = mask_BC.sum(1) * keep_B  # a row left out has no tokens, but counts among TRL's B
        loss, metrics = grpo_loss(
            result.logp_N,
            packed["old"],
            advantage_B,
            length_B,
            ref_logp_N=packed["ref"],
            sampling_logp_N=packed["sampling"],
            entropy_N=result.entropy_N,
            **self._loss_options(inputs),
        )
        for name, value in metrics.items():
            self._metrics[mode][name].append(float(value))
        return loss * weight

    def _rows_with_gradient(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, float]:
        """Rows of groups that have a gradient, and what restores bnpo's divisor, the tokens of all rows."""
        advantage_B, mask_BC = inputs["advantages"], inputs["completion_mask"].bool()
        filled_B = mask_BC.any(1)
        plain = self.beta == 0.0 and self.entropy_coef == 0.0 and self.top_entropy_quantile == 1.0
        keep_B = filled_B & (advantage_B != 0) if plain else filled_B
        if plain:
            live = inputs["group_ids"][keep_B].unique()
            keep_B = filled_B & torch.isin(inputs["group_ids"], live)
        if self.loss_type != "bnpo":
            return keep_B, 1.0
        return keep_B, float(mask_BC[keep_B].sum() / mask_BC.sum().clamp(min=1))

    def _loss_options(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `grpo_loss`; of those that some loss types have, what this one has."""
        args, training = self.args, self.model.training
        resolved = {"epsilon": self.epsilon_low, "epsilon_high": self.epsilon_high}
        return {
            "loss_type": self.loss_type,
            "importance_sampling_level": self.importance_sampling_level,
            **{
                name: resolved[name] if name in resolved else getattr(args, name)
                for name in OWN_OPTIONS[self.loss_type]
            },
            "beta": self.beta,
            "use_bias_correction_kl": args.use_bias_correction_kl,
            "top_entropy_quantile": self.top_entropy_quantile,
            "entropy_coef": self.entropy_coef,
            "off_policy_mask_threshold": self.off_policy_mask_threshold,
            "importance_sampling_correction": self._corrects(inputs),
            "importance_sampling_mode": self.vllm_importance_sampling_mode,
            "importance_sampling_clip_max": self.vllm_importance_sampling_clip_max,
            "importance_sampling_clip_min": self.vllm_importance_sampling_clip_min,
            "max_completion_length": self.max_completion_length,
            "num_items_in_batch": inputs["num_items_in_batch"],
            "num_processes": self.accelerator.num_processes,
            "gradient_accumulation_steps": self.current_gradient_accumulation_steps if training else 1,
            "steps_per_generation": args.steps_per_generation if training else 1,
        }

    def _corrects(self, inputs: dict[str, Any]) -> bool:
        """Whether the loss is weighted for what sampler and trainer differ by: TRL's option, for ours too."""
        fits = self.loss_type != "vespo" or self.vllm_importance_sampling_mode.startswith("token")
        ours = self._parity.on and "sampling_per_token_logps" in inputs and fits
        return (self.use_vllm or ours) and self.vllm_importance_sampling_correction

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Old and reference passes: the same score as the policy's, padded back to TRL's [B, C]."""
        split = input_ids.shape[1] - logits_to_keep
        inputs = {
            "prompt_ids": input_ids[:, :split],
            "prompt_mask": attention_mask[:, :split],
            "completion_ids": input_ids[:, split:],
            "completion_mask": attention_mask[:, split:],
            **{key: value for key, value in fields.items() if value is not None},
        }
        inputs = number_groups(inputs, self._group_size(len(input_ids)))
        mask_BC = inputs["completion_mask"].bool()
        keep_B = mask_BC.any(1)
        logps_BC, entropy_BC = torch.zeros_like(mask_BC, dtype=torch.float32), None
        if keep_B.any():
            result = self._score(
                model, inputs, keep_B, with_entropy=compute_entropy, rows_per_pass=batch_size
            )
            logps_BC = logps_BC.masked_scatter(mask_BC, result.logp_N)
            if result.entropy_N is not None:
                entropy_BC = torch.zeros_like(logps_BC).masked_scatter(mask_BC, result.entropy_N)
        return logps_BC, entropy_BC, None

    def _score(
        self,
        model: Any,
        inputs: Batch,
        keep_B: torch.Tensor,
        *,
        with_entropy: bool,
        rows_per_pass: int | None = None,
    ) -> Scored:
        """Log-probs of the kept rows' completion tokens, in the precision that the model trains in."""
        check_left_padded(inputs["prompt_mask"])
        prompts, completions, owner, images = grouped_rows(inputs, keep_B)
        with self.accelerator.autocast():
            return score(
                self.accelerator.unwrap_model(model),
                prompts,
                completions,
                owner,
                images_P=images,
                temperature=self.temperature,
                with_entropy=with_entropy,
                rows_per_pass=rows_per_pass,
                **tree_options(self.args),
            )


def left_padded(prompt_ids: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask int64 [P, L]."""
    mask = left_pad([[1] * len(row) for row in prompt_ids], 0)
    return {"input_ids": left_pad(prompt_ids, pad_token_id), "attention_mask": mask}


def left_pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Int64 [P, L], rows filled up on the left."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


def repeat_rows(value: Any, times: int) -> Any:
    """Each row of a tensor or list, `times` times in place."""
    if isinstance(value, torch.Tensor):
        return value.repeat_interleave(times, 0)
    return [row for row in value for _ in range(times)]
