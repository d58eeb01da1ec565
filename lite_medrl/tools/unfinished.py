"""What is missing of a run that was stopped early, and how does it go on?

progress.json says what is finished; decisions and recipe say what was still to come.
"""

from __future__ import annotations

from pathlib import Path

from lite_medrl.sections import Recipe
from lite_medrl.tools.invocation import command
from lite_medrl.tools.report.words import label
from lite_medrl.tools.run_folder import MARKER, State, read_state


def notice(run_dir: Path, recipe: Recipe) -> str:
    """What is missing and the command that goes on, in words; "" for a finished run."""
    if not (run_dir / MARKER).is_file():
        done = (run_dir / "results.json").is_file()
        return (
            "" if done else f"{run_dir} has no results.json and no {MARKER}: it cannot go on, run it again."
        )
    state = read_state(run_dir)
    if lost := lost_adapters(run_dir, state):
        again = rerun(run_dir, "--overwrite")
        return f"{run_dir} has lost its adapter of {' and '.join(lost)}. Make the run again with: {again}"
    missing = still_missing(run_dir, recipe, state)
    if not missing:
        return ""
    go_on = f"Unless it is still running, go on with: {rerun(run_dir, '--resume')}"
    return f"{run_dir} is not finished. Missing: {', '.join(missing)}. {go_on}"


def is_empty(run_dir: Path) -> bool:
    """Whether no stage is there to be shown: nothing trained, and the base not measured."""
    trained = any((run_dir / "adapters" / stage).is_dir() for stage in ("sft", "grpo"))
    if trained or (run_dir / "results.json").is_file():
        return False
    return not (run_dir / MARKER).is_file() or "measure base" not in read_state(run_dir).done


def still_missing(run_dir: Path, recipe: Recipe, state: State) -> list[str]:
    """Names of what is not finished, in the order of the run."""
    sent = [row["after"] for row in state.decisions if row["action"] == "sft"]
    names = ["base", *(f"sft-{i}" if i > 1 else "sft" for i in range(1, len(sent) + 1))]
    names += ["grpo"] if recipe.grpo.enabled else []
    found = []
    for name in names:
        if name != "base" and f"train {name}" not in state.done:
            found.append(label(name))
        elif f"measure {name}" not in state.done:
            found.append(f"the measurement of {label(name)}")
    return found if (run_dir / "results.json").is_file() else [*found, "the report (results.json)"]


def lost_adapters(run_dir: Path, state: State) -> list[str]:
    """Stages that were trained and whose adapter is gone."""
    trained = [entry.removeprefix("train ") for entry in state.done if entry.startswith("train ")]
    stages = dict.fromkeys(name.partition("-")[0] for name in trained)
    return [label(stage) for stage in stages if not (run_dir / "adapters" / stage).is_dir()]


def rerun(run_dir: Path, flag: str) -> str:
    """The command that runs the folder's own recipe again, with a flag."""
    return command("run", run_dir / "recipe.yaml", "--output_dir", run_dir, flag)
