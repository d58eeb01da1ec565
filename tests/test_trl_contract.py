"""The seams of TRL that the trainers stand on, pinned, and training on a CPU where triton can be imported.

A failure here says what has moved in a new TRL; the golden tests of test_grpo.py and test_sft.py say what
that changes.
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import tiny
import trl
from packaging.version import Version
from trl import GRPOConfig, SFTConfig

from lite_medrl.train.batches import COUNT_KEYS, IMAGE_KEYS, TOKEN_KEYS
from lite_medrl.train.grpo import ONLY, ONLY_IN_OUR_GENERATOR, GRPOTrainer
from lite_medrl.train.sft import ONLY as ONLY_IN_SFT
from lite_medrl.train.sft import SFTTrainer

FIELDS = [
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles",
    "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
]  # fmt: skip
# Parameters in TRL 1.15 and 1.16.
SEAMS: dict[tuple[type, str], list[str]] = {
    (trl.GRPOTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (trl.GRPOTrainer, "_generate_single_turn"): [
        "self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images",
    ],
    (trl.GRPOTrainer, "_prepare_inputs"): ["self", "generation_batch"],
    (trl.GRPOTrainer, "_generate_and_score_completions"): ["self", "inputs"],
    (trl.GRPOTrainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    (trl.GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
    (trl.GRPOTrainer, "_get_per_token_logps_and_entropies"): [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss", *FIELDS,
    ],
    (trl.SFTTrainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    (trl.SFTTrainer, "prediction_step"): ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
}  # fmt: skip
OURS = {trl.GRPOTrainer: GRPOTrainer, trl.SFTTrainer: SFTTrainer}
NOT_OVERRIDDEN = ("_generate_and_score_completions", "_compute_loss")


def moved(what: str) -> str:
    """What to say when a seam is not where it was."""
    return (
        f"TRL {trl.__version__} has changed {what}; read its source, adapt lite_medrl/train to it "
        "and this test to both ends of the range that pyproject.toml declares"
    )


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_this_trl_is_in_the_declared_range() -> None:
    assert Version("1.15") <= Version(trl.__version__) < Version("1.17"), moved("its version")


@pytest.mark.parametrize(("owner", "name"), SEAMS, ids=lambda x: getattr(x, "__name__", x))
def test_a_seam_has_the_parameters_that_we_override(owner: type, name: str) -> None:
    assert hasattr(owner, name), moved(f"{owner.__name__}.{name} (gone)")
    found = parameters(getattr(owner, name))
    assert found == SEAMS[owner, name], moved(f"the parameters of {owner.__name__}.{name}")


@pytest.mark.parametrize(("owner", "name"), SEAMS, ids=lambda x: getattr(x, "__name__", x))
def test_our_override_can_be_called_as_trls(owner: type, name: str) -> None:
    ours = OURS[owner]
    if name in NOT_OVERRIDDEN:
        assert name not in vars(ours)
        return
    assert name in vars(ours)
    found = parameters(getattr(ours, name))
    expected = SEAMS[owner, name]
    if found[-1] == "fields":  # takes every model input there may be
        found, expected = found[:-1], [p for p in expected if p not in FIELDS]
    assert found == expected


def names_of_self(tree: ast.AST, kind: type[ast.expr_context]) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and isinstance(node.ctx, kind)
    }


def tree_of(thing: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


@pytest.mark.parametrize("ours", OURS.values(), ids=lambda c: c.__name__)
def test_every_attribute_that_we_read_is_set_by_trl_or_transformers(ours: type) -> None:
    read = names_of_self(tree_of(ours), ast.Load) - names_of_self(tree_of(ours.__init__), ast.Store)
    parents = [c for c in ours.__mro__[1:] if c.__module__.startswith(("trl.", "transformers."))]
    there = set(dir(ours)).union(*(names_of_self(tree_of(c), ast.Store) for c in parents))
    assert len(read) > 5
    missing = sorted(read - there)
    assert not missing, moved(f"or dropped the attributes {missing} of {ours.__name__}")


def test_every_key_that_we_read_is_in_trls_batches() -> None:
    source = inspect.getsource(trl.GRPOTrainer._generate_and_score_completions)
    keys = {node.value for node in ast.walk(tree_of(trl.GRPOTrainer._generate_and_score_completions))
            if isinstance(node, ast.Constant)}  # fmt: skip
    wanted = {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch",
        "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "num_images", "tool_mask",
        *IMAGE_KEYS, *COUNT_KEYS, *TOKEN_KEYS,
    }  # fmt: skip
    assert wanted <= keys, moved(f"the keys of a rollout: {sorted(wanted - keys)} are gone")
    assert 'adapter_name="ref" if "ref" in model.peft_config' in source, moved(
        "how it finds the reference adapter"
    )


def test_the_options_that_we_refuse_exist_and_have_these_defaults() -> None:
    for config, only in ((GRPOConfig, ONLY | ONLY_IN_OUR_GENERATOR), (SFTConfig, ONLY_IN_SFT)):
        fields = config.__dataclass_fields__
        found = {name: fields[name].default for name in only if name in fields}
        assert found == only, moved(f"the defaults of {config.__name__}")


TRAIN = """
import tempfile
from pathlib import Path
import tiny, trl
from trl.trainer import utils
import test_grpo, test_sft

assert utils._ChunkedLogProbFunction is not None, "TRL did not find triton"
folder = Path(tempfile.mkdtemp(dir=tiny.scratch()))

sft = test_sft.trainer_of(folder)
batch = sft._prepare_inputs(sft.data_collator([sft.train_dataset[i] for i in range(2)]))
try:
    stock = float(trl.SFTTrainer.compute_loss(sft, sft.model, dict(batch)).detach())
    print("stock", trl.__version__, stock / float(sft.compute_loss(sft.model, dict(batch)).detach()))
except RuntimeError as error:
    assert "0 active drivers" in str(error)
    print("stock", trl.__version__, "stops")
sft.train()
print("sft", sft.state.log_history[0]["loss"])
grpo = test_grpo.trainer_of(folder, sft.model, beta=0.1, num_iterations=2, max_steps=2)
grpo.train()
print("grpo", len([row for row in grpo.state.log_history if "kl" in row]))
"""


@pytest.mark.slow
def test_training_works_where_triton_can_be_imported_but_not_run() -> None:
    # The TRL of this process goes first: it may be the one that PYTHONPATH leads with.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    roots = [*inherited, tiny.REPO / "tests", tiny.REPO, tiny.REPO / "kernels"]
    path = os.pathsep.join(str(root) for root in roots if root)
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TINY_FOLDER": str(tiny.folder())}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=600, check=False,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    words = [line.split() for line in done.stdout.splitlines() if line.startswith(("stock", "sft", "grpo"))]
    assert [word[0] for word in words] == ["stock", "sft", "grpo"]
    assert words[0][1] == trl.__version__
    if Version(trl.__version__) < Version("1.16"):  # 1.16 folds in PyTorch where there is no card
        assert words[0][2] == "stops", moved("where its fused head runs: is this test still needed?")
    else:
        assert float(words[0][2]) == pytest.approx(1, rel=1e-5)
    assert 0 < float(words[1][1]) < 10
    assert int(words[2][1]) == 2
