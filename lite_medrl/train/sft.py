"""`SFTTrainer`: TRL's, with the loss taken from hidden states through `medrl_kernels.grouped_logp`.

A drop-in: same constructor, `SFTConfig` and columns. It differs in two places. The head runs through our op,
so no logits of the whole row exist and a CPU with triton installed works (stock TRL stops there). LoRA
weights of a quantised model stay in fp32 (TRL casts them to bf16, which neither a T4 nor a CPU can train in).
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer as TRLSFTTrainer

from lite_medrl.train.guards import refuse_ignored, restore, trainable
from medrl_kernels import grouped_logp

# Options of SFTConfig with the one value that this trainer has; another would change the loss unseen.
ONLY = {"loss_type": "nll", "label_smoothing_factor": 0.0}


class SFTTrainer(TRLSFTTrainer):
    """TRL's SFTTrainer on the grouped log-prob; see the module."""

    model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = trainable(kwargs.get("model", args[0] if args else None))
        super().__init__(*args, **kwargs)
        restore(self.model, values)
        refuse_ignored(self.args, ONLY)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the labelled tokens: minus their log-probs over `num_items_in_batch` (or their
        count).
        """
        if return_outputs:
            raise ValueError("SFTTrainer does not return outputs: the logits are never built")
        logp_N, entropy_N = trained_logps(self.accelerator.unwrap_model(model), inputs)
        count = len(logp_N) if num_items_in_batch is None else num_items_in_batch
        loss = -logp_N.sum() / torch.as_tensor(count, device=logp_N.device).clamp(min=1)
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["entropy"].append(float(entropy_N.mean()) if len(entropy_N) else 0.0)
        self._total_train_tokens += int(inputs["attention_mask"].sum()) if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
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


def trained_logps(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """logp_N (with gradient) and entropy_N (without) of the tokens that carry a label, row after row."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    labels_BL = inputs["labels"][:, 1:]
    rows = {key: value for key, value in inputs.items() if key not in ("labels", "use_cache")}
    hidden_BLD = base.model(**rows, use_cache=False).last_hidden_state[:, :-1]
    trained_BL = labels_BL != -100
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    result = grouped_logp(
        hidden_BLD[trained_BL],
        head.weight,
        labels_BL[trained_BL],
        bias_V=head.bias,
        softcap=getattr(text, "final_logit_softcapping", None),
        with_entropy=True,
    )
    assert result.entropy_N is not None
    return result.logp_N, result.entropy_N.detach()
