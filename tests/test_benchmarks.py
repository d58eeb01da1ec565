"""The benchmark's own parts: rows, statistics, the check before a time, inputs, budget; and one run end to
end."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F

REPO = Path(__file__).parents[1]
BENCHMARKS = REPO / "kernels" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import run  # noqa: E402
from medrl_bench import heads, inputs, losses, machine, peer, plots, rows, summary, tasks, timing  # noqa: E402
from medrl_bench.inputs import HeadCase, LossCase  # noqa: E402
from medrl_bench.rows import Row  # noqa: E402
from medrl_bench.session import Session  # noqa: E402
from medrl_bench.timing import Budget  # noqa: E402

CPU = torch.device("cpu")
GREEN = Row(
    "grpo_loss", "triton", "forward", "dapo, token level", "B=2 T=3", "fp32", p50_ms=1.5, p20_ms=1.25,
    p80_ms=2.0, repeats=20, rate=12.5, rate_unit="GB/s", ceiling_share=0.5, error="loss 0.01", device="card",
)  # fmt: skip
RED = replace(
    GREEN, impl="a peer", p50_ms=None, p20_ms=None, p80_ms=None, repeats=None, check="red: grad is off"
)


def test_percentiles() -> None:
    assert rows.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == pytest.approx((3.0, 1.8, 4.2))
    assert rows.spread([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no values"):
        rows.percentile([], 0.5)


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "card.csv"
    rows.append(path, [GREEN])
    rows.append(path, [RED])
    assert rows.read(path) == [GREEN, RED]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert tuple(lines[0].split(",")) == rows.COLUMNS
    assert {"op", "impl", "direction", "shape", "dtype", "p50_ms", "p20_ms", "p80_ms", "peak_mib", "rate",
            "ceiling_share", "device", "versions", "commit", "date"} <= set(rows.COLUMNS)  # fmt: skip


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "card.csv"
    path.write_text("op,impl\ngrpo_loss,triton\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has the columns \('op', 'impl'\)"):
        rows.append(path, [GREEN])
    assert path.read_text(encoding="utf-8") == "op,impl\ngrpo_loss,triton\n"


def test_a_table_ranks_by_time_and_gives_a_wrong_answer_none() -> None:
    slower = replace(GREEN, impl="reference", p50_ms=3.0, p20_ms=2.0, p80_ms=4.0)
    title, first, second, third = rows.table([RED, slower, GREEN]).splitlines()
    assert title == "grpo_loss  forward  B=2 T=3 fp32  dapo, token level"
    assert (first.split()[0], second.split()[0]) == ("triton", "reference")
    assert "1.500 ms [1.250, 2.000]" in first
    assert "50% of the ceiling" in first
    assert third.split(maxsplit=2)[2] == "red: grad is off"
    assert "ms" not in third


def test_the_latest_of_repeated_measurements_counts() -> None:
    newer = replace(GREEN, p50_ms=1.0, date="2")
    assert rows.latest([GREEN, RED, newer]) == [newer, RED]


def test_budget_counts_down() -> None:
    now = SimpleNamespace(s=10.0)
    budget = Budget(5, clock=lambda: now.s)
    assert budget.left_s() == 5
    now.s = 16.0
    assert budget.left_s() == -1


@pytest.mark.parametrize(
    ("repeats", "spent_s", "over", "done"),
    [
        (19, 9.0, False, True),  # slow: four boxes are spent
        (19, 3.0, False, False),
        (20, 1.9, False, False),
        (20, 2.0, False, True),
        (200, 0.1, False, True),
        (4, 99.0, True, False),
        (5, 0.1, True, True),
    ],
)
def test_how_often_a_call_is_measured(repeats: int, spent_s: float, over: bool, done: bool) -> None:
    assert timing.enough(repeats, spent_s, 2.0, over) is done


def test_calls_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))  # every look at the clock is a second after the last one
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}

    def timer(call: timing.Call) -> float:
        call()
        return float(len(order))

    found = timing.measure_in_turns(calls, timer, 20.0, Budget(60))
    assert "".join(order) == "ab" * 21  # once to warm up
    assert found["a"].repeats == found["b"].repeats == 20
    assert found["a"].ms.p50 == 22.0  # the median of 3, 5, .. 41
    few = timing.measure_in_turns({"a": lambda: None}, lambda call: 1.0, 60.0, Budget(-1))
    assert few["a"] == ((1.0, 1.0, 1.0), timing.FEW_REPEATS)


def test_a_card_is_timed_by_events_behind_a_flushed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(ms=0.0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.ms = clock.ms

        def elapsed_time(self, end: Any) -> float:
            return end.ms - self.ms

    class Scratch:
        def zero_(self) -> None:
            clock.ms += 0.3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=2**20)
    )
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: Scratch())
    timer = timing.timer_for(torch.device("cuda"))
    assert isinstance(timer, timing.CudaTimer)
    assert timer.flushes == 4  # of 0.3 ms: the host is a millisecond ahead

    def call() -> None:
        clock.ms += 2.5

    assert timer(call) == pytest.approx(2.5)


def test_the_check_lets_nothing_wrong_pass() -> None:
    truth = {"logp": torch.tensor([-1.0, -2.0]), "grad": torch.tensor([3.0, 4.0])}
    allowed = {"logp": 0.1, "grad": 0.1}
    near = {"logp": torch.tensor([-1.05, -2.0]), "grad": torch.tensor([3.3, 4.4])}
    assert peer.judge(near, truth, {"logp": 0.1, "grad": 0.2}) == ("logp 0.5, grad 0.5", "ok")
    far = peer.judge(near | {"grad": torch.tensor([3.0, 5.0])}, truth, allowed)
    assert far.check == "red: grad is off by 2 times what is allowed"
    for bad in (math.nan, math.inf):
        found = truth | {"logp": torch.tensor([bad, -2.0])}
        assert peer.judge(found, truth, allowed).check.startswith("red: logp is off by")
    assert "logp is missing" in peer.judge({"grad": truth["grad"]}, truth, allowed).check
    assert "another shape" in peer.judge(truth | {"grad": torch.ones(1)}, truth, allowed).check


def test_what_may_be_off_is_twice_plain_pytorch_and_a_floor() -> None:
    truth = {"logp": torch.zeros(2), "grad": torch.tensor([3.0, 4.0])}
    plain = {"logp": torch.tensor([0.0, 0.25]), "grad": torch.tensor([3.0, 4.5])}
    floor = peer.FLOOR
    expected = {"logp": 0.5 + floor["logp"], "grad": 0.2 + floor["grad"]}
    assert peer.allowances(plain, truth) == pytest.approx(expected)


def test_why_a_peer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = heads.OP.make(HeadCase(2, 8, 4, "fp32", with_entropy=True), CPU)
    assert peer.needs("torch")(made) is None
    assert peer.needs("torch", "no_such_package")(made) == "no_such_package cannot be imported here"
    assert peer.needs(cuda=True)(made) == "needs a CUDA card"
    assert peer.needs(half=True)(made) == "needs 16-bit inputs"
    assert peer.needs(entropy=False)(made) == "has no entropy"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert peer.needs(triton=True)(made) is None
    monkeypatch.delenv("TRITON_INTERPRET")
    assert peer.needs(triton=True)(made) == "needs a CUDA card or TRITON_INTERPRET=1"


@pytest.mark.parametrize("policy", ["peaked", "scattered"])
def test_a_peaked_policy_has_the_entropy_of_a_trained_one(policy: str) -> None:
    case = HeadCase(400, 4096, 1024, "fp32", policy)
    made, again = heads.OP.make(case, CPU), heads.OP.make(case, CPU)
    logp_NV = F.linear(made.hidden_ND, made.weight_VD).log_softmax(1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(1)
    assert 0.2 < float(entropy_N.mean()) < 0.4
    assert float(entropy_N.median()) < 0.05
    # The targets are drawn from the policy itself: their mean log-probability is minus its entropy.
    chosen_N = logp_NV.gather(1, made.target_N[:, None]).squeeze(1)
    assert float(-chosen_N.mean()) == pytest.approx(float(entropy_N.mean()), abs=0.1)
    low = float((made.target_N < case.vocabulary // 8).float().mean())
    assert low > 0.6 if policy == "peaked" else low < 0.25
    assert all(torch.equal(a, b) for a, b in zip(made[1:], again[1:], strict=True))


def test_a_flat_policy_is_flat_and_an_unknown_one_refused() -> None:
    made = heads.OP.make(HeadCase(50, 1000, 64, "fp16", "flat"), CPU)
    assert (made.hidden_ND.dtype, made.weight_VD.dtype) == (torch.float16, torch.float16)
    logp_NV = F.linear(made.hidden_ND.float(), made.weight_VD.float()).log_softmax(1)
    assert float(-(logp_NV.exp() * logp_NV).sum(1).mean()) > 0.95 * math.log(1000)
    with pytest.raises(ValueError, match="policy must be one of peaked, scattered, flat"):
        heads.OP.make(HeadCase(2, 8, 4, "fp32", "sharp"), CPU)


def test_some_tokens_are_clipped_and_none_lies_at_a_bound() -> None:
    made = losses.OP.make(LossCase(64, 512), CPU)
    off_N = ((made.logp_N - made.old_logp_N).exp() - 1).abs()
    assert 0.05 < float((off_N > inputs.EPSILON).float().mean()) < 0.4
    assert float((off_N - inputs.EPSILON).abs().min()) > 5e-4
    near = inputs.loss_inputs(LossCase(64, 512), CPU, made.logp_N)
    assert float(((near.logp_N - near.old_logp_N).exp() - 1).abs().max()) < 0.1


def test_work_is_counted_as_the_readme_says() -> None:
    case = HeadCase(2, 5, 3, "bf16")
    assert heads.work(case, False) == (2 * 2 * 5 * 3, "TFLOP/s")
    assert heads.work(case, True) == (4 * 2 * 5 * 3, "TFLOP/s")
    assert losses.work(LossCase(2, 5), True) == (4 * 10 * 4, "GB/s")  # three read, one written
    assert losses.work(LossCase(2, 5, beta=0.1), False) == (4 * 10 * 4, "GB/s")


def test_plans() -> None:
    full = tasks.plan("full", list(tasks.OPS), "bf16")
    head_shapes = {task.case.shape for task in full if task.op.name == "grouped_logp"}
    assert {"N=4096 V=151936 D=2560", "N=4096 V=151936 D=4096", "N=16384 V=151936 D=2560"} <= head_shapes
    assert {"B=64 T=512", "B=4096 T=1024"} == {
        task.case.shape for task in full if task.op.name == "grpo_loss"
    }
    assert {task.case.dtype for task in full} == {"bf16", "fp16", "fp32"}
    old = tasks.plan("full", ["grouped_logp"], "fp16")
    assert {task.case.dtype for task in old} == {"fp16"}
    assert len({task.text for task in old if task.only is None}) == sum(task.only is None for task in old)
    for task in full:
        assert task.only is None or task.only <= {one.name for one in task.op.peers}
    with pytest.raises(ValueError, match="ops must be among"):
        tasks.plan("tiny", ["grpo"], "bf16")
    with pytest.raises(ValueError, match="shapes must be one of"):
        tasks.plan("huge", ["grpo_loss"], "bf16")


def op_with(*peers: peer.Peer) -> peer.Op:
    """grpo_loss with other implementations."""
    return losses.OP._replace(peers=peers)


def session(seconds: float = 60) -> Session:
    """A session on the CPU with a short box."""
    return Session(CPU, Budget(seconds), 0.0, {"device": "here", "versions": "v", "commit": "c", "date": "d"})


def test_only_right_answers_get_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    right = losses.in_direction(losses.ours("reference"))

    def wrong(made: Any, backward: bool) -> peer.Outputs:
        found = dict(right(made, backward))
        return found | {"grad": found["grad"] * 1.001}

    def broken(made: Any, backward: bool) -> peer.Outputs:
        raise RuntimeError("no such kernel\nsecond line")

    def greedy(made: Any, backward: bool) -> peer.Outputs:
        raise torch.OutOfMemoryError

    absent = peer.Peer("absent", right, lambda made: "is not here")
    op = op_with(*(peer.Peer(run.__name__, run) for run in (right, wrong, broken, greedy)), absent)
    here = session()
    found = {row.impl: row for row in here.run(tasks.Task(op, LossCase(3, 4), True))}
    assert set(found) == {"copy", "run", "wrong", "broken", "greedy"}
    assert found["run"].check == "ok"
    assert found["run"].p50_ms is not None
    assert found["run"].rate == pytest.approx(4 * 12 * 4 / found["run"].p50_ms / 1e6)
    assert found["run"].rate is not None
    assert found["copy"].rate is not None
    assert found["run"].ceiling_share == pytest.approx(found["run"].rate / found["copy"].rate)
    assert found["wrong"].check.startswith("red: grad is off by ")
    assert found["broken"].check == "red: RuntimeError: no such kernel"
    assert found["greedy"].check == "red: out of memory"
    for name in ("wrong", "broken", "greedy"):
        assert (found[name].p50_ms, found[name].rate, found[name].repeats) == (None, None, None)
    assert [tuple(left)[0::2] for left in here.left_out] == [("absent", "is not here")]
    assert [row.impl for row in here.run(tasks.Task(op, LossCase(3, 4), True))].count("copy") == 0


def test_nothing_starts_when_the_time_is_up() -> None:
    here = session(seconds=-1)
    for task in tasks.plan("tiny", list(tasks.OPS), "bf16"):
        assert here.run(task) == []
    assert [left.why for left in here.left_out] == ["no time left"] * 4


def test_a_slow_peer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that takes longer than there is time is broken off; what was measured before it stays."""
    right = losses.in_direction(losses.ours("reference"))

    def slow(made: Any, backward: bool) -> peer.Outputs:
        time.sleep(60)
        return right(made, backward)

    here = session(seconds=1.5)
    quick = tasks.Task(op_with(peer.Peer("right", right)), LossCase(3, 4), True)
    begin = time.monotonic()
    assert [row.impl for row in here.run(quick)] == ["copy", "right"]
    assert here.run(tasks.Task(op_with(peer.Peer("slow", slow)), LossCase(3, 4), True)) == []
    assert time.monotonic() - begin < 10
    assert [left.why for left in here.left_out] == ["the time was up while it ran"]


def run_with(peers: tuple[peer.Peer, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and words of the command with these implementations of one op."""
    monkeypatch.setattr(run, "plan", lambda *args: [tasks.Task(op_with(*peers), LossCase(3, 4), True)])
    with redirect_stdout(io.StringIO()) as said:
        code = run.main(["--shapes", "tiny", "--minutes", "0.5", "--out", str(folder)])
    return code, said.getvalue()


def test_the_command_tells_red_rows_and_missed_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    right = losses.in_direction(losses.ours("reference"))

    def wrong(made: Any, backward: bool) -> peer.Outputs:
        return right(made, backward) | {"grad": torch.zeros(12)}

    code, said = run_with((peer.Peer("reference", right),), tmp_path / "green", monkeypatch)
    assert code == 0
    assert "not measured: grpo_loss, forward+backward, fp32: reference's time at most 1 x trl eager's" in said
    assert "no plot drawn" in said
    code, said = run_with(
        (peer.Peer("right", right), peer.Peer("wrong", wrong)), tmp_path / "red", monkeypatch
    )
    assert code == 1
    assert "red: grad is off" in said


def card(op: str, impl: str, direction: str, shape: str, case: str, ms: float, **more: Any) -> Row:
    """A row of a card."""
    more = {"dtype": "bf16", "peak_mib": 1000.0, "device": "card"} | more
    return Row(op, impl, direction, case, shape, more.pop("dtype"), p50_ms=ms, p20_ms=ms, p80_ms=ms, **more)


def test_figures_are_compared_with_the_rows() -> None:
    head, both = "grouped_logp", "forward+backward"
    found = [
        card(head, "triton", both, summary.NARROW, "peaked", 7.1, peak_mib=60 + 4096 * 2560 * 6 / 2**20),
        card(head, "trl tiles", both, summary.NARROW, "peaked", 10.0),
        card(head, "unsloth", both, summary.NARROW, "peaked", 7.2),
        card(head, "triton filtered", both, summary.NARROW, "peaked", 4.4),
        card(head, "triton", "forward", summary.NARROW, "peaked", 3.0, ceiling_share=0.9),
        card("grpo_loss", "triton", both, "B=64 T=512", "dapo, token level", 0.01, dtype="fp32", launches=2),
        card("grpo_loss", "trl eager", both, "B=64 T=512", "dapo, token level", 0.2, dtype="fp32"),
        card("grouped_logp+grpo_loss", "triton", both, "B=8 T=512 V=151936 D=2560",
             "peaked, with entropy; grpo, token level", 9.0, peak_mib=90.0),
        card("grouped_logp+grpo_loss", "liger fused", both, "B=8 T=512 V=151936 D=2560",
             "peaked, with entropy; grpo, token level", 30.0, peak_mib=80.0),
    ]  # fmt: skip
    said = {finding.figure: (finding.verdict, finding.measured) for finding in summary.compare(found)}
    narrow = "grouped_logp, forward+backward, N=4096 V=151936 D=2560, bf16, peaked: triton"
    step = "grouped_logp+grpo_loss, forward+backward, B=8 T=512 V=151936 D=2560, bf16, peaked: triton"
    loss = "grpo_loss, forward+backward, B=64 T=512, fp32, dapo, token level: triton"
    assert said[f"{narrow}'s time at most 0.7 x trl tiles's"] == ("missed", pytest.approx(0.71))
    assert said[f"{narrow}'s time at most 1 x unsloth's"][0] == "met"
    assert said[f"{narrow} filtered's time at most 0.45 x trl tiles's"] == ("met", pytest.approx(0.44))
    assert said[f"{narrow}'s MiB beyond u at most 300"] == ("met", pytest.approx(60.0))
    assert said[f"{step}'s time at most 0.333333 x liger fused's"][0] == "met"
    assert said[f"{step}'s peak memory at most 1 x liger fused's"] == ("missed", pytest.approx(9 / 8))
    assert said[f"{loss}'s time at most 0.1 x trl eager's"] == ("met", pytest.approx(0.05))
    assert said[f"{loss}'s launches at most 2"] == ("met", 2.0)
    assert sum(verdict == "not measured" for verdict, _ in said.values()) == len(said) - 9
    red = summary.compare([replace(found[0], check="red: off"), *found[1:]])
    first = {finding.figure: finding.verdict for finding in red}
    assert first[f"{narrow}'s time at most 0.7 x trl tiles's"] == "not measured"


def test_the_readme_shows_the_stored_cpu_rows() -> None:
    """Its table is made of the CSV, and its plots are what is drawn from it."""
    results = BENCHMARKS / "results"
    known = rows.read(results / "cpu.csv")
    readme = (REPO / "kernels" / "README.md").read_text(encoding="utf-8")
    assert summary.markdown(known, "reference", summary.TRL_ON_CPU) in readme
    for path in plots.draw(known, Path(tempfile.mkdtemp()), "cpu"):
        stored = results / path.name
        assert stored.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")
        assert stored.stat().st_size < 60_000
        assert f"](benchmarks/results/{path.name})" in readme


def test_a_filter_may_drop_what_it_says_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "filter_eps", lambda dtype: 0.02)
    made = heads.OP.make(HeadCase(16, 64, 32, "fp32", "flat"), CPU)

    def dropping(eps: float) -> Any:
        p_NV = F.linear(made.hidden_ND, made.weight_VD).softmax(1)
        own_NV = F.one_hot(made.target_N, 64).float()
        return (made.grad_N[:, None] * (own_NV - p_NV.masked_fill(p_NV < eps, 0))) @ made.weight_VD

    truth = heads.truth(made, True)
    limits, extra = heads.allowed(made, True, truth), heads.slack(made, truth, math.inf)
    assert extra["logp"] == 0
    limits = {name: limits[name] + extra[name] for name in limits}
    assert peer.judge(truth | {"grad": dropping(0.02)}, truth, limits).check == "ok"
    assert peer.judge(truth | {"grad": -dropping(0.02)}, truth, limits).check.startswith("red")
    strict = heads.allowed(made, True, truth)
    assert peer.judge(truth | {"grad": dropping(0.02)}, truth, strict).check.startswith("red")


@pytest.mark.parametrize("policy", ["peaked", "flat"])
def test_a_filter_that_drops_everything_is_wrong(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where every probability is below eps, and the bound on them all is more than the gradient."""
    monkeypatch.setattr(heads, "filter_eps", lambda dtype: 0.1)
    made = heads.OP.make(HeadCase(16, 64, 32, "fp32", policy), CPU)
    truth = heads.truth(made, True)
    allowed = heads.allowed(made, True, truth)
    for drops in (math.inf, 16.0):
        extra = heads.slack(made, truth, drops)
        limits = {name: allowed[name] + extra[name] for name in allowed}
        nothing = truth | {"grad": torch.zeros_like(truth["grad"])}
        assert peer.judge(nothing, truth, limits).check.startswith("red: grad is off by")


def test_a_filter_with_a_bound_on_the_sum_may_drop_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "filter_eps", lambda dtype: 2e-3)
    made = heads.OP.make(HeadCase(16, 1024, 32, "fp32", "flat"), CPU)
    truth = heads.truth(made, True)
    bounded, free = (heads.slack(made, truth, drops)["grad"] for drops in (16.0, math.inf))
    longest = float(made.weight_VD.norm(dim=1).max())
    assert bounded == pytest.approx(
        16 * 2e-3 * float(made.grad_N.norm()) * longest / float(truth["grad"].norm()), rel=1e-5
    )
    assert bounded < free / 10
    assert {one.name: one.drops for one in heads.PEERS if one.drops} == {
        "triton filtered": 16.0,
        "cce": math.inf,
    }


def test_plots_show_green_times_of_the_latest_rows(tmp_path: Path) -> None:
    other = replace(GREEN, impl="trl eager", p50_ms=6.25, p20_ms=6.0, p80_ms=7.0)
    alone = replace(GREEN, direction="forward+backward")
    panels = plots.comparisons([other, GREEN, RED, alone])
    assert {title: [row.impl for row in panel] for title, panel in panels.items()} == {
        "forward, B=2 T=3 fp32, dapo, token level": ["triton", "trl eager"]
    }
    (path,) = plots.draw([GREEN, other], tmp_path, "card")
    assert path == tmp_path / "card-grpo_loss.svg"
    first = path.read_bytes()
    assert b"<svg" in first
    drawn = ElementTree.fromstring(first)
    (ours, theirs) = (x for x in drawn.iter("{http://www.w3.org/2000/svg}rect") if x.get("height") == "14")
    assert (ours.get("fill"), theirs.get("fill")) == (plots.OURS, plots.PEERS)
    assert float(theirs.get("width", 0)) / float(ours.get("width", 0)) == pytest.approx(6.25 / 1.5, rel=2e-3)
    assert {"triton", "trl eager", "1.5 ms", "6.25 ms"} <= set(drawn.itertext())
    assert plots.draw([GREEN, other], tmp_path, "card") == [path]
    assert path.read_bytes() == first
    assert plots.draw([GREEN], tmp_path, "alone") == []


def test_where_a_row_was_measured(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) == "unknown"
    assert machine.installed("torch") == torch.__version__
    assert machine.installed("no_such_package") is None
    assert f"torch {torch.__version__}" in machine.versions()
    threads = torch.get_num_threads()
    assert machine.device_name(CPU).endswith(", 1 thread" if threads == 1 else f", {threads} threads")


def test_a_commit_is_marked_where_kernels_differ_from_it(tmp_path: Path) -> None:
    def git(*line: str) -> None:
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *name, *line], cwd=tmp_path, check=True, capture_output=True)

    results = tmp_path / "kernels" / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "kernels" / "op.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = machine.commit(results.parent)
    assert len(clean) == 12
    (results / "cpu.csv").write_text("rows")
    (tmp_path / "other.py").write_text("2")
    assert machine.commit(results.parent) == clean
    (tmp_path / "kernels" / "op.py").write_text("2")
    assert machine.commit(results.parent) == clean + "+"


@pytest.mark.slow
def test_one_command_measures_writes_and_draws(tmp_path: Path) -> None:
    line = ["--shapes", "tiny", "--json", "--minutes", "3", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), *line],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    with (tmp_path / "cpu-tiny.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["impl"] for line in lines] == [row["impl"] for row in found["rows"]]
    assert [row for row in found["rows"] if not row["check"].startswith("ok")] == []
    assert {row["op"] for row in found["rows"]} == {"ceiling", *tasks.OPS}
    by_name = {(row["op"], row["impl"], row["direction"]): row for row in found["rows"]}
    assert by_name["grouped_logp", "reference", "forward+backward"]["p50_ms"] > 0
    assert by_name["grouped_logp+grpo_loss", "reference", "forward+backward"]["ceiling_share"] > 0
    # In the interpreter every kernel is checked and none is timed.
    for op in tasks.OPS:
        if machine.installed("triton"):
            row = by_name[op, "triton", "forward+backward"]
            assert (row["check"], row["p50_ms"]) == ("ok, not timed: the interpreter runs it", None)
    why = {left["why"] for left in found["left_out"]}
    assert all(reason == "needs a CUDA card" or reason.endswith("cannot be imported here") for reason in why)
    assert all(Path(path).is_file() for path in found["files"])
