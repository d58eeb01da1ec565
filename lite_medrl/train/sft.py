"""`SFTTrainer`: TRL's, with rows of one image packed into a prefix tree, and the loss from hidden states.

A drop-in: same constructor, `SFTConfig` and columns. It differs in three places. Rows of a batch that show
one image share it (`model.packed`; `group_by_image` brings them together), with the same loss. The head runs
through `medrl_kernels.grouped_logp`, so no logits of the whole row exist and a CPU with triton installed
works (stock TRL 1.15 stops there). LoRA weights of a quantised model stay in fp32 (TRL casts them to bf16,
which neither a T4 nor a CPU can train in).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import SequentialSampler
from trl import SFTTrainer as TRLSFTTrainer

from lite_medrl.model.pack_check import packable_plan, require_packable
from lite_medrl.model.packed import Plan, States, base_of, packed_states, plan_labelled
from lite_medrl.model.prompt_images import as_weights
from lite_medrl.model.score import LEAST_SAVING, head_logp
from lite_medrl.train.config import tree_options
from lite_medrl.train.guards import refuse_ignored, refuse_processes, restore, trainable
from lite_medrl.train.image_order import ImageOrder, images_of_rows

# Options of SFTConfig with the one value that this trainer has; another would change the loss unseen.
ONLY = {"loss_type": "nll", "label_smoothing_factor": 0.0, "packing": False, "padding_free": False}


class SFTTrainer(TRLSFTTrainer):
    """TRL's SFTTrainer on the grouped log-prob; see the module."""

    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = trainable(kwargs.get("model", args[0] if args else None))
        super().__init__(*args, **kwargs)
        restore(self.model, values)
        refuse_ignored(self.args, ONLY)
        refuse_processes(self.accelerator.num_processes)
        if tree_options(self.args)["prefix_tree"] == "required":
            require_packable(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """TRL's, or rows in the order of their images."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not getattr(self.args, "group_by_image", False):
            return super()._get_train_sampler(train_dataset)
        return ImageOrder(SequentialSampler(dataset), images_of_rows(dataset), self.args.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the labelled tokens: minus their log-probs over `num_items_in_batch` (or their
        count).
        """
        if return_outputs:
            raise ValueError("SFTTrainer does not return outputs: the logits are never built")
        with self.accelerator.autocast():
            logp_N, entropy_N, saving = trained_logps(
                self.accelerator.unwrap_model(model), inputs, **tree_options(self.args)
            )
        count = len(logp_N) if num_items_in_batch is None else num_items_in_batch
        loss = -logp_N.sum() / torch.as_tensor(count, device=logp_N.device).clamp(min=1)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["entropy"].append(float(entropy_N.mean()) if len(entropy_N) else 0.0)
        self._total_train_tokens += int(inputs["attention_mask"].sum()) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._metrics[mode]["prefix_tree/saving"].append(saving)
        return loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Evaluation loss only."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None


def trained_logps(
    model: Any, inputs: dict[str, Any], *, prefix_tree: str = "auto", max_tree_tokens: int = 8192
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """logp_N (with gradient) and entropy_N (without) of the tokens that carry a label, row after row.

    The third value says how many times fewer tokens went through the network than the rows have.
    """
    told = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    rows = as_weights(base_of(model), told)

    def make() -> Plan:
        return plan_labelled(base_of(model).config, rows, inputs["labels"], max_tokens=max_tree_tokens)

    made = None
    if prefix_tree == "required" or (prefix_tree == "auto" and answers_only(base_of(model).config, inputs)):
        made = packable_plan(model, make, required=prefix_tree == "required")
    if made is not None and made.saving >= LEAST_SAVING:
        states = packed_states(model, made.trees, made.images, tokens_per_pass=max_tree_tokens)
        saving = made.saving
    else:
        states, saving = rows_as_they_are(model, rows, inputs["labels"]), 1.0
    result = head_logp(model, states, with_entropy=True)
    assert result.entropy_N is not None
    return result.logp_N, result.entropy_N.detach(), saving


def answers_only(config: Any, inputs: dict[str, Any]) -> bool:
    """Whether there are labels, and all of them stand behind the images of their row."""
    trained_BL = inputs["labels"] != -100
    image_BL = inputs["input_ids"] == getattr(config, "image_token_id", None)
    return bool(trained_BL.any()) and not bool((image_BL & (trained_BL.cumsum(1) > 0)).any())


def rows_as_they_are(model: Any, rows: dict[str, Any], labels_BL: torch.Tensor) -> States:
    """The states that predict labels, from one pass over the padded rows."""
    hidden_BLD = base_of(model).model(**rows, use_cache=False).last_hidden_state[:, :-1]
    labels_BL = labels_BL[:, 1:]
    trained_BL = labels_BL != -100
    hidden_ND = hidden_BLD[trained_BL]
    row_N = trained_BL.nonzero()[:, 0]
    return States(hidden_ND, torch.arange(len(hidden_ND), device=row_N.device), labels_BL[trained_BL], row_N)
