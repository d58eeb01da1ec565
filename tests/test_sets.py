"""Every named set is read from small files in its publishers' own schema; what is not said is not guessed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lite_medrl.data.images import load_image, read_bytes
from lite_medrl.data.sets import pmc, registry
from lite_medrl.data.sources import Sample, SampleView, Tally, iter_samples, load_samples
from lite_medrl.types import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def png(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(out, "PNG")
    return out.getvalue()


def cell(colour: tuple[int, int, int] | None) -> dict[str, Any] | None:
    """An image as the hub's Parquet files hold it."""
    return None if colour is None else {"bytes": png(colour), "path": None}


def parquet(path: Path, rows: list[dict[str, Any]], schema: dict[str, Any], group_rows: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema(list(schema.items()))), path, row_group_size=group_rows
    )
    return path


def colour_of(sample: Sample, place: int = 0) -> tuple[int, int, int]:
    return load_image(sample.images[place]).getpixel((0, 0))  # type: ignore[return-value]


def both_ways(source: str, split: str, **options: Any) -> list[Sample]:
    """The samples of a stream, which the lazy view must give too."""
    samples = load_samples(source, split, **options)
    view = SampleView(source, split, **options)
    assert list(view) == samples
    assert view[-1:] == samples[-1:]
    return samples


RAD = {"image": IMAGE, "question": pa.string(), "answer": pa.string()}


def test_vqa_rad_and_pathvqa_by_yes_and_no(tmp_path: Path) -> None:
    rows = [
        {"image": cell(RED), "question": "is there a fracture?", "answer": "no"},
        {"image": cell(GREEN), "question": "what organ is shown?", "answer": "the liver"},
        {"image": cell(BLUE), "question": "Is it axial?", "answer": "Yes "},
    ]
    parquet(tmp_path / "data" / "train-00000-of-00002-ab.parquet", rows[:2], RAD)
    parquet(tmp_path / "data" / "train-00001-of-00002-cd.parquet", rows[2:], RAD)
    parquet(tmp_path / "data" / "test-00000-of-00001-ef.parquet", rows[:1], RAD)
    first, second = both_ways(f"vqa-rad:{tmp_path}", "train")
    assert (first.id, first.options, first.answer, first.letter) == (
        "vqa-rad-train-1",
        ("Yes", "No"),
        "No",
        "B",
    )
    assert (first.licence, first.modality, first.source, first.kind, first.split) == (
        "CC0-1.0", "radiology", "vqa-rad", "yes/no", "train",
    )  # fmt: skip
    assert (second.id, second.answer, colour_of(second)) == ("vqa-rad-train-3", "Yes", BLUE)
    assert colour_of(first) == RED
    assert read_bytes(first.images[0]) == png(RED)
    (open_one,) = both_ways(f"vqa-rad:{tmp_path}", "train", questions="open")
    assert (open_one.options, open_one.answer, colour_of(open_one)) == ((), "the liver", GREEN)
    with pytest.raises(ValueError, match="vqa-rad-train-2 is an open question"):
        _ = open_one.letter
    assert len(both_ways(f"pathvqa:{tmp_path}", "train", questions="all")) == 3
    tally = Tally()
    load_samples(f"vqa-rad:{tmp_path}", "train", tally=tally)
    assert (tally.rows, tally.other_questions, tally.skipped) == (3, 1, 0)


def test_an_id_on_the_hub_is_a_name_too(tmp_path: Path) -> None:
    parquet(
        tmp_path / "data" / "test-0.parquet", [{"image": cell(RED), "question": "?", "answer": "no"}], RAD
    )
    by_id = load_samples(f"flaviagiammarino/vqa-rad:{tmp_path}", "test")
    assert by_id == load_samples(f"vqa-rad:{tmp_path}", "test")
    assert registry.HUB_IDS["RadGenome/PMC-VQA"] == "pmc-vqa"


def test_slake_keeps_its_english_questions(tmp_path: Path) -> None:
    base = {
        "img_id": 102, "img_name": "xmlab102/source.jpg", "location": "Lung", "modality": "CT",
        "base_type": "vqa", "triple": ["vhead", "_", "_"], "content_type": "Modality",
    }  # fmt: skip
    rows = [
        base | {"question": "Modality?", "answer": "CT", "q_lang": "en", "answer_type": "OPEN", "qid": 1},
        base | {"question": "扫描方式?", "answer": "CT", "q_lang": "zh", "answer_type": "OPEN", "qid": 2},
        base | {"question": "Is it CT?", "answer": "Yes", "q_lang": "en", "answer_type": "CLOSED", "qid": 3},
        base | {"question": "T1 or T2?", "answer": "T2", "q_lang": "en", "answer_type": "CLOSED", "qid": 4},
    ]  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.writestr("imgs/xmlab102/source.jpg", png(GREEN))
    (closed,) = both_ways(f"slake:{tmp_path}", "test")
    assert (closed.id, closed.answer, closed.modality, closed.kind) == (
        "slake-test-3",
        "Yes",
        "CT",
        "Modality",
    )
    assert (closed.images[0].member, closed.subject) == ("imgs/xmlab102/source.jpg", "102")
    assert colour_of(closed) == GREEN
    assert [s.answer for s in both_ways(f"slake:{tmp_path}", "test", questions="open")] == ["CT", "T2"]
    (tmp_path / "imgs" / "xmlab102").mkdir(parents=True)
    (tmp_path / "imgs" / "xmlab102" / "source.jpg").write_bytes(png(RED))
    assert colour_of(load_samples(f"slake:{tmp_path}", "test")[0]) == RED  # unpacked goes before packed


CSV_HEAD = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"


def pmc_folder(folder: Path, lines: list[str], name: str = "train.csv", head: str = CSV_HEAD) -> Path:
    (folder / name).write_text(head + "".join(line + "\n" for line in lines), encoding="utf-8")
    (folder / "images").mkdir(exist_ok=True)
    return folder


def test_pmc_vqa_with_its_quirks(tmp_path: Path) -> None:
    pmc_folder(tmp_path, [
        'PMC1_F1.jpg,What is shown? , Focal uptake," A:Diffuse, mild"," B: Focal uptake", C:None,D:Unknown,B',
        "PMC2_F1.jpg,Letter wrong?,x,A:x,A:y,C:z,D:w,A",
        "PMC3_F1.jpg,Gold wrong?,q,A:x,B:y,C:z,D:w,B",
        "PMC4_F1.jpg,No letter?,x,A:x,B:y,C:z,D:w,E",
        "PMC5_F1.jpg,Twice?,x,A:x,B:y,C:y,D:w,A",
        "PMC6_F1.jpg,Colon in it?,ratio 1:2,A:ratio 1:2,B:ratio 1:3,C:z,D:w,A",
    ])  # fmt: skip
    tally = Tally()
    first, last = load_samples(f"pmc-vqa:{tmp_path}", "train", on_error="skip", tally=tally)
    assert (first.options, first.answer) == (
        ("Diffuse, mild", "Focal uptake", "None", "Unknown"),
        "Focal uptake",
    )
    assert (first.id, first.question, first.subject) == ("pmc-vqa-train-2", "What is shown?", "PMC1")
    assert first.images[0].path == str(tmp_path / "images" / "PMC1_F1.jpg")
    assert last.answer == "ratio 1:2"
    assert list(SampleView(f"pmc-vqa:{tmp_path}", "train", on_error="skip")) == [first, last]
    told = [str(fault).replace(str(tmp_path), "") for fault in tally.faults]
    assert told == [
        "/train.csv:3: choice B is lettered 'A': 'A:y'; drop the row",
        "/train.csv:4: gold letter 'B' stands for 'y', but the answer is 'q'; drop the row",
        "/train.csv:5: gold letter 'E' is outside the options A to D; fix the row or drop it",
        "/train.csv:6: an option stands twice in ['x', 'y', 'y', 'w']; drop one",
    ]
    assert (tally.rows, tally.skipped) == (6, 4)
    with pytest.raises(DataError, match=r"train\.csv:3: choice B is lettered 'A'"):
        load_samples(f"pmc-vqa:{tmp_path}", "train")


def test_pmc_vqa_version_two_has_the_letter_as_its_answer(tmp_path: Path) -> None:
    head = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"
    pmc_folder(
        tmp_path,
        ["0,PMC1_F1.jpg,A scan.,Which?, A:one , B:two , C:three , D:four ,C,train"],
        "train_2.csv",
        head,
    )
    (tmp_path / "images_2").mkdir()
    (only,) = both_ways(f"pmc-vqa-2:{tmp_path}", "train")
    assert (only.answer, only.letter, only.images[0].path) == (
        "three",
        "C",
        str(tmp_path / "images_2/PMC1_F1.jpg"),
    )
    old = CSV_HEAD.replace("Answer,", "Anwser,")
    pmc_folder(tmp_path, ["PMC1_F1.jpg,Which?,one,A:one,B:two,C:three,D:four,A"], "test.csv", old)
    assert both_ways(f"pmc-vqa:{tmp_path}", "test")[0].answer == "one"


def test_pmc_vqa_small_mirror(tmp_path: Path) -> None:
    texts = ("caption", "question", "answer", "choice a", "choice b", "choice c", "choice d", "answer label")
    row = dict(
        zip(texts, ["A scan.", "Which?", "two", "A:one", " B:two", "C:three", "D:four", "B"], strict=True)
    )
    schema = {"image": IMAGE} | dict.fromkeys(texts, pa.string())
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{"image": cell(RED)} | row], schema)
    (only,) = both_ways(f"pmc-vqa-small:{tmp_path}", "test")
    assert (only.options, only.answer, colour_of(only)) == (("one", "two", "three", "four"), "two", RED)


def test_the_balanced_subset_of_pmc_vqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = dict(zip("ABCD", ("one", "two", "three", "four"), strict=True))
    golds = "AAAAAAAABBBBCCCCDDDD"
    lines = [
        f"PMC{i}_F1.jpg,Which {i}?,{texts[gold]},A:one,B:two,C:three,D:four,{gold}"
        for i, gold in enumerate(golds)
    ]
    pmc_folder(tmp_path, [*lines, "PMC90_F1.jpg,Bad?,one,A:one,A:two,C:three,D:four,A"])
    pmc_folder(tmp_path, [lines[0], lines[8]], "test_clean.csv")
    assert (pmc.PER_LETTER, pmc.SEED) == (2000, 42)
    with pytest.raises(
        DataError, match=r"too few rows for 2000 of each gold letter: A \(7\), B \(3\), C \(4\)"
    ):
        load_samples(f"pmc-vqa-8k:{tmp_path}", "train")
    monkeypatch.setattr(pmc.balanced, "__kwdefaults__", {"per_letter": 2, "seed": 42})
    monkeypatch.setattr(pmc, "VALIDATION_PER_LETTER", 1)
    chosen = both_ways(f"pmc-vqa-8k:{tmp_path}", "train")
    assert [sum(s.letter == letter for s in chosen) for letter in "ABCD"] == [2, 2, 2, 2]
    assert [s.id for s in chosen] == [s.id for s in load_samples(f"pmc-vqa-8k:{tmp_path}", "train")]
    assert not {"PMC0", "PMC8"} & {s.subject for s in chosen}
    held_out = both_ways(f"pmc-vqa-8k:{tmp_path}", "validation")
    assert sorted(s.letter for s in held_out) == list("ABCD")
    assert not {s.subject for s in held_out} & ({"PMC0", "PMC8"} | {s.subject for s in chosen})
    assert len(load_samples(f"pmc-vqa-8k:{tmp_path}", "test")) == 2


def test_medxpertqa_has_several_images_and_its_choices_once(tmp_path: Path) -> None:
    row = {
        "id": "MM-26", "question": "A patient coughs.\nWhich is it?\nAnswer Choices: (A) a (B) b (C) c",
        "options": {"A": "a", "B": "b", "C": "c", "D": "d", "E": "e"}, "label": "E",
        "images": ["MM-26-a.jpeg", "MM-26-b.jpeg"], "medical_task": "Diagnosis", "body_system": "Respiratory",
        "question_type": "Reasoning",
    }  # fmt: skip
    (tmp_path / "MM").mkdir()
    (tmp_path / "MM" / "test.jsonl").write_text(json.dumps(row) + "\n")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images/MM-26-a.jpeg", png(RED))
        archive.writestr("images/MM-26-b.jpeg", png(BLUE))
    (only,) = both_ways(f"medxpertqa-mm:{tmp_path}", "test")
    assert (only.question, only.letter, only.kind) == ("A patient coughs.\nWhich is it?", "E", "Reasoning")
    assert [colour_of(only, i) for i in range(2)] == [RED, BLUE]
    with pytest.raises(DataError, match="no split 'train'; the set has dev, test"):
        load_samples(f"medxpertqa-mm:{tmp_path}", "train")


def test_mmmu_reads_options_from_a_python_list(tmp_path: Path) -> None:
    texts = ("id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty",
             "question_type", "subfield")  # fmt: skip
    schema = dict.fromkeys(texts, pa.string()) | {f"image_{i}": IMAGE for i in range(1, 8)}
    row = dict.fromkeys(schema) | {
        "id": "validation_Pharmacy_1",
        "question": "<image 1> Which of <image 1> and <image 2> is it? <image 2>",
        "options": "['it\\'s \"one\"', 'two', '<image 2>']", "answer": "B",
        "question_type": "multiple-choice", "subfield": "Pharmacology",
        "image_1": cell(RED), "image_2": cell(GREEN),
    }  # fmt: skip
    free = row | {"id": "validation_Pharmacy_2", "options": "[]", "answer": "3.5", "question_type": "open"}
    parquet(tmp_path / "Pharmacy" / "validation-00000-of-00001.parquet", [row, free], schema)
    (only,) = both_ways(f"mmmu-medical:{tmp_path}", "validation")
    assert only.options == ('it\'s "one"', "two", "image 2")
    assert (only.answer, only.question, len(only.images)) == ("two", "Which of image 1 and image 2 is it?", 2)
    assert (colour_of(only), colour_of(only, 1)) == (RED, GREEN)
    (open_one,) = both_ways(f"mmmu-medical:{tmp_path}", "validation", questions="open")
    assert open_one.answer == "3.5"


MEDVL = {
    "images": pa.list_(IMAGE), "question": pa.string(), "options": pa.string(), "answer_label": pa.string(),
    "answer": pa.string(), "reasoning": pa.string(), "dataset_name": pa.string(), "dataset_index": pa.int64(),
    "hash": pa.string(), "misc": pa.string(),
}  # fmt: skip


def test_medvlthinker_has_options_as_json_and_a_licence_a_row(tmp_path: Path) -> None:
    row = {
        "images": [cell(RED), cell(BLUE)], "question": "Which?", "options": '{"A": "Yes", "B": "No"}',
        "answer_label": "B", "answer": "No", "reasoning": "", "dataset_name": "vqa_rad_closed",
        "dataset_index": 7, "hash": "x", "misc": "{}",
    }  # fmt: skip
    rows = [
        row,
        row | {"dataset_index": 8, "images": [cell(GREEN)]},
        row | {"dataset_index": 9, "answer": "Yes"},
    ]
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", rows, MEDVL)
    tally = Tally()
    first, second = load_samples(f"medvlthinker-eval:{tmp_path}", "test", on_error="skip", tally=tally)
    assert (first.id, first.letter, first.licence) == (
        "medvlthinker-eval-test-vqa_rad_closed-7",
        "B",
        "CC0-1.0",
    )
    assert (first.source, first.kind) == ("medvlthinker-eval/vqa_rad_closed", "vqa_rad_closed")
    assert [colour_of(first, i) for i in range(2)] == [RED, BLUE]
    assert colour_of(second) == GREEN
    assert [f.what for f in tally.faults] == ["gold letter 'B' stands for 'No', not for 'Yes'; drop it"]


def test_omnimedvqa_reads_every_source_and_both_spellings(tmp_path: Path) -> None:
    row = {
        "dataset": "ACRIMA", "question_id": "ACRIMA_0001", "question_type": "Disease Diagnosis",
        "question": "What is it?", "gt_answer": "glaucoma", "image_path": "Images/ACRIMA/Im002_ACRIMA.png",
        "option_A": "normal", "option_B": "glaucoma", "modality_type": "Fundus Photography",
    }  # fmt: skip
    other = {key: value for key, value in row.items() if key != "modality_type"} | {
        "dataset": "Chest CT",
        "question_id": "c1",
        "modality": "CT",
        "option_C": "cyst",
        "option_D": "x",
    }
    folder = tmp_path / "QA_information" / "Open-access"
    folder.mkdir(parents=True)
    (folder / "ACRIMA.json").write_text(json.dumps([row]))
    (folder / "Chest CT Scan.json").write_text(
        json.dumps([other, other | {"question_id": "c2", "gt_answer": "q"}])
    )
    tally = Tally()
    first, second = load_samples(f"omnimedvqa:{tmp_path}", "test", on_error="skip", tally=tally)
    assert (first.letter, first.options, first.modality) == (
        "B",
        ("normal", "glaucoma"),
        "Fundus Photography",
    )
    assert first.images[0].path == str(tmp_path / "Images/ACRIMA/Im002_ACRIMA.png")
    assert (second.modality, len(second.options), second.source) == ("CT", 4, "omnimedvqa/Chest CT")
    assert [str(f).rpartition("/")[2] for f in tally.faults] == [
        "Chest CT Scan.json:2: gold answer 'q' is not among the options ['normal', 'glaucoma', 'cyst', 'x']; "
        "fix the row or drop it"
    ]


def test_conversations_become_a_question_a_turn(tmp_path: Path) -> None:
    llava = {
        "id": "c1", "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nIs it CT?"}, {"from": "gpt", "value": "Yes."},
            {"from": "human", "value": "Which organ?"}, {"from": "gpt", "value": "The liver."},
        ],
    }  # fmt: skip
    share = {"images": ["b.png"], "messages": [
        {"role": "system", "content": "You help."}, {"role": "user", "content": "<image>Where?"},
        {"role": "assistant", "content": "Left."}]}  # fmt: skip
    torn = {"image": "a.png", "conversations": llava["conversations"][:3]}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([llava, share, torn, {"conversations": llava["conversations"]}]))
    tally = Tally()
    options = {"questions": "all", "on_error": "skip"}
    found = load_samples(f"llava:{path}", "train", **options, tally=tally)  # type: ignore[arg-type]
    assert [(s.id, s.question, s.answer) for s in found] == [
        ("llava-train-c1-1", "Is it CT?", "Yes"), ("llava-train-c1-2", "Which organ?", "The liver."),
        ("llava-train-2-1", "Where?", "Left."),
    ]  # fmt: skip
    assert found[0].options == ("Yes", "No")
    assert found[2].images[0].path == str(tmp_path / "b.png")
    assert list(SampleView(f"llava:{path}", "train", **options)) == found  # type: ignore[arg-type]
    assert [f.what.partition(",")[0].partition(";")[0] for f in tally.faults] == [
        "turns must alternate between human and gpt", "the conversation has no image",
    ]  # fmt: skip


def test_a_long_json_list_is_read_in_pieces(tmp_path: Path) -> None:
    """Over many chunks, with letters of several bytes at their borders."""
    turn = [{"from": "human", "value": "Où? " + "é" * 900}, {"from": "gpt", "value": "Là."}]
    rows = [{"id": i, "image": "a.png", "conversations": turn} for i in range(300)]
    path = tmp_path / "talk.json"
    path.write_text(
        "\ufeff [\n" + ",\n ".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n]\n", "utf-8"
    )
    view = SampleView(f"llava:{path}", "train", questions="all")
    assert [s.id for s in view] == [f"llava-train-{i}-1" for i in range(300)]
    assert view[250].answer == "Là."
    path.write_text(path.read_text("utf-8")[:-500], "utf-8")
    with pytest.raises(
        DataError, match=r"talk\.json:300: not a JSON list of objects: it cannot be read on from byte"
    ):
        load_samples(f"llava:{path}", "train", questions="all")


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "C:/x.png"])
def test_an_image_name_that_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    pmc_folder(tmp_path, [f"{name},Which?,one,A:one,B:two,C:three,D:four,A"])
    with pytest.raises(
        DataError, match=r"train\.csv:2: the image name .* leads out of its folder; repair the row"
    ):
        load_samples(f"pmc-vqa:{tmp_path}", "train")


def test_a_missing_column_is_one_fault_of_the_file(tmp_path: Path) -> None:
    pmc_folder(tmp_path, ["PMC1_F1.jpg,Which?,one"] * 3, head="Figure_path,Question,Answer\n")
    told = r"train\.csv:1: missing column Choice A, Choice B, Choice C, Choice D; rename the file's columns"
    with pytest.raises(DataError, match=told):
        load_samples(f"pmc-vqa:{tmp_path}", "train")
    schema = {"image": IMAGE, "question": pa.string()}
    parquet(tmp_path / "data" / "train-0.parquet", [{"image": cell(RED), "question": "?"}] * 2, schema)
    with pytest.raises(DataError, match=r"train-0\.parquet:1: missing column answer; rename .* or add it$"):
        load_samples(f"vqa-rad:{tmp_path}", "train")


def test_fields_that_nobody_knows_are_reported(tmp_path: Path) -> None:
    row = {"image": cell(RED), "question": "Is it?", "answer": "yes", "image_organ": "CHEST"}
    parquet(tmp_path / "data" / "train-0.parquet", [row], RAD | {"image_organ": pa.string()})
    tally = Tally()
    list(iter_samples(f"vqa-rad:{tmp_path}", "train", tally=tally))
    assert tally.to_json() == {
        "rows": 1, "skipped": 0, "other_questions": 0, "unknown_fields": ["image_organ"], "faults": [],
    }  # fmt: skip


def test_sets_that_are_not_there_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITE_MEDRL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}/slake: no such folder; .* lite-medrl data fetch slake"):
        load_samples("slake", "train")
    with pytest.raises(DataError, match=r"pathmnist_64\.npz: no such file; .* data fetch pathmnist@64"):
        load_samples("pathmnist@64", "train")
    with pytest.raises(DataError, match=r"comes in 28, 64, 128, 224 pixels; write pathmnist@224"):
        load_samples("pathmnist@32", "train")
    with pytest.raises(DataError, match=r"vqa_rad: no such file; .* did you mean 'vqa-rad'\?"):
        load_samples("vqa_rad", "train")
    (tmp_path / "slake").mkdir()
    with pytest.raises(DataError, match=r"slake: no file train\.json for split 'train'; fetch the set again"):
        load_samples("slake", "train")


def test_every_named_set_says_its_licence_and_terms() -> None:
    for name in registry.names():
        licence, access = registry.licence_of(name)
        assert licence
        assert access
        assert registry.splits_of(name)
    for one in registry.SETS.values():
        assert one.fields.convert.__doc__
        assert bool(one.hub) == bool(one.splits) == bool(one.patterns)
