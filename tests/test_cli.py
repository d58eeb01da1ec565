"""The command line: what it prints, where, how fast, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import lite_medrl.tools
from lite_medrl import __version__
from lite_medrl.cli import main, table
from lite_medrl.recipe import load_recipe
from lite_medrl.types import DataError, ModelError, RecipeError

RESULTS = {
    "stages": [
        {"stage": "base", "split": "test", "n": 480, "acc_at_1": 0.4, "acc_at_1_ci95": [0.355, 0.446],
         "support": 0.123, "format_failure_frac": 0.025},
    ]
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 4\ngrpo:\n  max_steps: 7\n")
    return path


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[dict[str, Any]]]:
    """Puts a stand-in where the pipeline is; it records its arguments, then calls or raises what it got."""

    def put(action: Any) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def run(resolved: Any, **rest: Any) -> Any:
            calls.append({"recipe": resolved.recipe, **rest})
            if isinstance(action, BaseException):
                raise action
            return action()

        monkeypatch.setitem(sys.modules, "lite_medrl.tools.pipeline", SimpleNamespace(run=run))
        monkeypatch.setattr(lite_medrl.tools, "pipeline", SimpleNamespace(run=run), raising=False)
        return calls

    return put


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lite_medrl", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_help_is_there_within_a_second_and_names_every_verb() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = command("--help")
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0
    for verb in ("run", "diagnose", "demo", "data", "doctor", "bench"):
        assert f"\n    {verb} " in done.stdout
    assert min(seconds) < 1.0


def test_nothing_heavy_is_imported_for_a_dry_run(recipe: Path) -> None:
    code = (
        "import sys; from lite_medrl.cli import main; main(['run', sys.argv[1], '--dry-run']); "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'gradio', 'numpy', 'PIL'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lite-medrl {__version__}\n"


def test_dry_run_prints_a_recipe_that_reads_back_and_writes_nothing(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "grpo.max_steps=3", "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "max_steps: 3 " in out
    assert "# command line" in out
    (tmp_path / "again.yaml").write_text(out)
    assert load_recipe(tmp_path / "again.yaml").recipe == load_recipe(recipe, ["grpo.max_steps=3"]).recipe
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "again.yaml"}


def test_dry_run_as_json(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--dry_run", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["recipe"]["grpo"]["max_steps"] == 7
    assert found["origins"]["grpo.max_steps"] == "mine.yaml:3"


@pytest.mark.parametrize(
    "words",
    [
        ["grpo.max_steps=3", "seed=9", "--output_dir", "out"],
        ["--output-dir", "out", "grpo.max_steps=3", "seed=9"],
        ["grpo.max_steps=3", "-o", "out", "seed=9"],
        ["-o=out", "--grpo.max-steps=3", "--seed=9"],
    ],
)
def test_overrides_may_stand_anywhere(recipe: Path, pipeline: Any, words: list[str]) -> None:
    calls = pipeline(lambda: RESULTS)
    assert main(["run", str(recipe), *words]) == 0
    assert calls[0].pop("recipe") == load_recipe(recipe, ["grpo.max_steps=3", "seed=9"]).recipe
    assert calls == [{"output_dir": Path("out"), "overwrite": False, "resume": False}]


def test_output_directory_defaults_to_the_recipes_name(recipe: Path, pipeline: Any) -> None:
    calls = pipeline(lambda: RESULTS)
    main(["run", str(recipe), "--overwrite"])
    assert calls[0]["output_dir"] == Path("runs/mine")
    assert calls[0]["overwrite"] is True


@pytest.mark.parametrize(
    "words",
    [
        ["run", "RECIPE", "--lr", "3"],
        ["run", "RECIPE", "--overwrite", "--resume"],
        ["doctor", "a=b"],
        ["runn"],
        [],
    ],
)
def test_arguments_that_mean_nothing_exit_with_2(recipe: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(recipe) if word == "RECIPE" else word for word in words])
    assert ended.value.code == 2


def test_unknown_key_is_one_line_without_traceback(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text("seed: 1\ngrpo:\n  num_generation: 4\n")
    done = command("run", recipe, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    expected = "mine.yaml:3: unknown key grpo.num_generation; did you mean grpo.num_generations?"
    assert done.stderr == f"lite-medrl: {expected}\n"
    assert not (tmp_path / "out").exists()


def noisy() -> dict[str, Any]:
    print("from Python")
    os.write(1, b"from C\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    return RESULTS


def test_json_is_all_there_is_on_stdout(
    recipe: Path, pipeline: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline(noisy)
    assert main(["run", str(recipe), "--json"]) == 0
    print("and stdout is back")
    out, err = capfd.readouterr()
    first, second = out.splitlines()
    assert json.loads(first) == RESULTS
    assert second == "and stdout is back"
    for source in ("from Python", "from C", "from a child"):
        assert source in err


def test_results_as_a_table() -> None:
    head, row = table(RESULTS).splitlines()
    assert head.split() == ["stage", "split", "n", "Acc@1", "[95", "%]", "support", "format", "failures"]
    assert row.split() == ["base", "test", "480", "0.400", "[0.355,", "0.446]", "0.123", "2.5%"]


def test_few_questions_are_said_once_below_the_table() -> None:
    (row,) = RESULTS["stages"]
    rows = [row, row | {"split": "validation", "n": 9}, row | {"n": 9}]
    assert table({"stages": rows}).splitlines()[4:] == ["n = 9: too few questions to compare"]


def test_decisions_stand_below_the_table() -> None:
    row = {"after": "sft", "rule": "sft", "action": "grpo", "support": -0.05, "rule_k": 2, "threshold": 0.5}
    assert table(RESULTS | {"decisions": [row]}).splitlines()[2:] == [
        "after sft: GRPO, though the rule asks for SFT (support -0.050 at K = 2, threshold 0.500)"
    ]


def test_demo_serves_a_run_and_tells_its_address_as_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    launched: list[Any] = []
    page = SimpleNamespace(
        launch=lambda *words: launched.append(words),
        serve=lambda run, port: nullcontext(f"http://127.0.0.1:{port}/{run}"),
        Comparison=SimpleNamespace(open=lambda run_dir: f"opened-{run_dir.name}"),
    )
    monkeypatch.setitem(sys.modules, "lite_medrl.tools.demo", page)
    monkeypatch.setattr(lite_medrl.tools, "demo", page, raising=False)
    monkeypatch.setattr(threading.Event, "wait", stop)
    assert main(["demo", "runs/mine", "--port", "7000", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "run": "runs/mine",
        "url": "http://127.0.0.1:7000/opened-mine",
    }
    assert main(["demo", "runs/mine"]) == 0
    assert launched == [(Path("runs/mine"), None)]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (RecipeError("grpo.beta: no"), 2, "lite-medrl: grpo.beta: no"),
        (DataError("rows.jsonl:3: no"), 2, "lite-medrl: rows.jsonl:3: no"),
        (ModelError("no such model"), 2, "lite-medrl: no such model"),
        (OutOfMemoryError("tried 2 GiB"), 3, "out of memory: tried 2 GiB\nlower grpo.per_device"),
        (MemoryError(), 3, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 3, "out of memory"),
        (FloatingPointError("loss is nan at step 3"), 4, "loss is nan at step 3"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    recipe: Path, pipeline: Any, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, part: str
) -> None:
    pipeline(error)
    assert main(["run", str(recipe), "--json"]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert part in err


def test_a_fault_of_ours_keeps_its_traceback(recipe: Path, pipeline: Any) -> None:
    pipeline(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run", str(recipe)])


def test_telemetry_is_off_unless_the_user_turned_it_on(
    recipe: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    seen: dict[str, str] = {}
    pipeline(lambda: seen.update(os.environ) or RESULTS)
    main(["run", str(recipe)])
    assert seen["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert seen["HF_HUB_DISABLE_TELEMETRY"] == "0"


def rows(folder: Path) -> Path:
    Image.new("RGB", (8, 8), "gray").save(folder / "a.png")
    made = [
        {"id": f"q{i}", "image": "a.png", "question": "Which plane?", "options": ["axial", "coronal"],
         "answer": "axial",
         "kind": "plane", "modality": "CT", "source": "us", "licence": "CC0", "split": split}
        for i, split in enumerate(["train", "train", "test"])
    ]  # fmt: skip
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def test_data_inspect_counts_and_shows_a_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path)
    assert main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["questions"], found["images"]) == (3, 1)
    assert found["by_split"] == {"train": 2, "test": 1}
    assert found["by_kind"] == {"plane": 3}
    assert found["sample"]["letter"] == "A"
    assert main(["data", "inspect", str(path)]) == 0
    assert "3 questions about 1 images" in capfd.readouterr().out


def test_data_inspect_warns_of_a_split_that_a_run_would_miss(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path)
    assert main(["data", "inspect", str(path)]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == (
        "warning: no question that can be used in split 'validation', which a run needs; give rows that "
        "split, or name another in the recipe by data.validation_split"
    )
    assert main(["data", "inspect", str(path), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["missing_splits"], found["faults"]) == ({"data.validation_split": "validation"}, [])


def test_data_inspect_tells_all_faults(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no image")
    good = json.loads(path.read_text().splitlines()[0])
    made = [
        good,
        good | {"id": "q1", "answer": "oblique", "image": "gone.png"},
        "",
        "{'id': 1}",
        good | {"id": "q0"},
        good | {"id": "q5", "image": "b.png"},
        good | {"id": "q6", "image": "b.png", "split": "test"},
        {key: good[key] for key in good if key not in ("question", "image")}
        | {"id": "q7", "options": ["axial"]},
        good | {"id": "q8", "split": "validation"},
    ]
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in made))
    assert main(["data", "inspect", str(path)]) == 2
    told = capfd.readouterr().out.splitlines()
    heading = "8 faults in 8 rows; a run stops at the first that it meets:"
    png = f"image {tmp_path}/b.png: cannot be read as PNG, JPEG, WEBP, BMP, TIFF: cannot identify image file"
    lines = [
        "2: gold answer 'oblique' is not among the options ['axial', 'coronal']; fix the row or drop it",
        f"2: sample q1: image {tmp_path}/gone.png: no such file; check the path in the row",
        "4: not JSON: Expecting property name enclosed in double quotes at column 2",
        "5: id 'q0' stands in row 1 already; use unique ids",
        f"6: sample q5: {png}; export it again (1 more row shows it)",
        '8: "images" must be a list of file names (or "image" one name), got None',
        "8: missing question; a row needs id, question, options, answer and images",
        "8: options must be a list of 2 to 10 texts, got ['axial']",
    ]
    assert told[told.index(heading) + 1 :] == [f"  {path}:{line}" for line in lines]
    assert told[0] == f"{path}: 2 questions about 1 images"
    assert "  by split: train 1, validation 1" in told
    assert [line.partition("'")[2] for line in told if line.startswith("warning")] == [
        "test', which a run needs; give rows that split, or name another in the recipe by data.test_split"
    ]
    assert main(["data", "inspect", str(path), "--json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert [f"{fault['row']}: {fault['what']}" for fault in found["faults"]] == lines
    assert [fault["id"] for fault in found["faults"]] == ["q1", "q1", None, "q0", "q5", "q7", "q7", "q7"]
    assert (found["rows"], found["questions"]) == (8, 2)


def test_data_inspect_says_what_a_run_does_about_faults(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path)
    good = path.read_text()
    words = ["data", "inspect", str(path)]
    path.write_text(good + "[]\n[]\n")
    assert main(words) == 2
    assert "; a run stops at the first that it meets:" in capfd.readouterr().out
    assert main([*words, "--on-error", "skip"]) == 0
    told = capfd.readouterr().out
    assert "2 faults in 5 rows; a run with data.on_error=skip goes on without 2 rows:" in told
    assert "stops" not in told
    path.write_text("[]\n")
    assert main([*words, "--on-error", "skip"]) == 2
    assert "1 fault in 1 rows; nothing is left that a run could use, although" in capfd.readouterr().out


def test_data_inspect_of_a_list_that_breaks_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows(tmp_path)
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "X."}]
    image = next(tmp_path.glob("*.png")).name
    row = json.dumps({"id": 1, "image": image, "conversations": turns})
    path = tmp_path / "talk.json"
    path.write_text(f"[{row}, {{'id': 2}}]")
    assert main(["data", "inspect", f"llava:{path}", "--on-error", "skip"]) == 2
    told = capfd.readouterr().out
    assert "1 fault in 2 rows; a run stops, although it skips what it can (data.on_error=skip):" in told


def test_data_inspect_prints_twenty_faults_and_counts_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path)
    path.write_text("[]\n" * 33)
    assert main(["data", "inspect", str(path)]) == 2
    told = capfd.readouterr().out.splitlines()
    assert "33 faults in 33 rows; a run stops at the first that it meets:" in told
    assert told[-2:] == [f"  {path}:20: expected an object, got list", "  and 13 more; --json lists all"]
    assert main(["data", "inspect", str(path), "--json"]) == 2
    assert len(json.loads(capfd.readouterr().out)["faults"]) == 33
    path.write_text("\n")
    assert main(["data", "inspect", str(path)]) == 2
    assert (
        capfd.readouterr().out.splitlines()[-1]
        == f"  {path}: the data set is empty; it needs at least one row"
    )
    assert main(["data", "inspect", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: no such file" in capfd.readouterr().err


def test_data_list_knows_the_embedded_set(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    (embedded,) = json.loads(capfd.readouterr().out)["sources"]
    assert embedded["source"] == "embedded"
    assert embedded["questions"] >= 4000
    assert embedded["images"] >= 1000
    assert set(embedded["by_split"]) == {"train", "validation", "test"}


def test_doctor_compares_with_the_declared_ranges(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    versions = {row["name"]: row for row in found["versions"]}
    assert versions["torch"]["range"] == "<2.15,>=2.11"
    assert versions["trl"]["ok"] is True
    assert found["problems"] == []
    assert found["device"]["dtype"] in ("float32", "float16", "bfloat16")
    assert found["memory_gib"] > 1


def test_doctor_reports_a_version_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    from lite_medrl.tools import doctor

    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: "0.9" if name == "trl" else real(name))
    monkeypatch.setattr(doctor, "device", lambda: None)
    found = doctor.examine()
    assert found["ok"] is False
    assert found["problems"] == ["trl 0.9: tested with <1.17,>=1.15"]
    assert "NO  trl 0.9" in doctor.describe(found)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["data", "list"], ["data", "list", "--json"], ["run", "RECIPE", "--dry-run"]],
    ids=" ".join,
)
def test_a_verb_ends_quietly_where_nobody_reads_stdout(
    words: list[str], unbuffered: str, recipe: Path
) -> None:
    """`lite-medrl data list | head -1`: here the reader has left before the first line comes."""
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "lite_medrl", *(str(recipe) if w == "RECIPE" else w for w in words)]
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            line, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    passed_over = words == ["--help"] and unbuffered  # by argparse, which then ends as always
    assert (done.returncode, done.stderr) == (0 if passed_over else 141, "")


def test_a_broken_pipe_that_is_not_stdouts_is_an_error(
    recipe: Path, pipeline: Callable[[Any], list[dict[str, Any]]]
) -> None:
    pipeline(BrokenPipeError("a worker is gone"))
    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        main(["run", str(recipe)])
