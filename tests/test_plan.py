"""The plan of all training runs, and the files that its data travels in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from engines.cards import NUMBERS, SHIPPED, Weights
from engines.checkpoint import load_network
from engines.data.packs import read_packs, write_packs
from engines.data.pairs import Sample
from engines.training import plan
from engines.training.recipe import read_recipe
from engines.training.train import Budget
from tests.command import ROOT

TINY = {"network": "neid-live", "batch": 2, "crop": (32, 32)}


def sample(seed: int, *, day: bool = False) -> Sample:
    """Soft random pictures, 96x128 and half of that."""
    coarse = np.random.default_rng(seed).integers(40, 220, (6, 8, 3), dtype=np.uint8)
    large = coarse.repeat(16, 0).repeat(16, 1)
    dark = large if day else large // 8
    return Sample(small=np.ascontiguousarray(dark[::2, ::2]), large=large, dark=dark, mean=None if day else seed + 0.5)


@pytest.fixture
def sets() -> dict[str, list[Sample]]:
    lol = {"lol": [sample(1), sample(2)], "held_out": [sample(3)], "eval15": [sample(5), sample(6)]}
    return lol | {"night": [sample(4)], "day": [sample(4, day=True)]}


def test_packs_give_the_samples_back_and_no_file_is_too_large(tmp_path: Path, sets: dict[str, list[Sample]]) -> None:
    files = write_packs(sets, tmp_path, limit=24_000)
    assert len(files) > 1
    assert max(path.stat().st_size for path in files) <= 24_000
    back = read_packs(tmp_path)
    assert {name: len(samples) for name, samples in back.items()} == {name: len(some) for name, some in sets.items()}
    for name, samples in sets.items():
        for theirs, ours in zip(back[name], samples, strict=True):
            assert theirs.mean == ours.mean
            assert np.array_equal(theirs.small, ours.small)
            for a, b in ((theirs.large, ours.large), (theirs.dark, ours.dark)):
                assert np.square(a.astype(float) - b).mean() < 6.5  # 40 dB
    assert back["day"][0].dark is back["day"][0].large


def test_packs_keep_the_bright_pictures_of_some_lists_as_they_are_and_others_by_quality(
    tmp_path: Path, sets: dict[str, list[Sample]]
) -> None:
    errors = []
    for quality in (90, 20):
        write_packs(sets, tmp_path / f"{quality}", quality=quality, exact=["eval15"])
        back = read_packs(tmp_path / f"{quality}")
        assert all(np.array_equal(a.large, b.large) for a, b in zip(back["eval15"], sets["eval15"], strict=True))
        errors.append(np.square(back["lol"][0].large.astype(float) - sets["lol"][0].large).mean())
    assert 0 < 2 * errors[0] < errors[1]


def test_flat_pictures_of_two_shapes_are_not_taken_for_one(tmp_path: Path) -> None:
    shapes = ((32, 64), (64, 32))
    flat = [[np.zeros((scale * h, scale * w, 3), np.uint8) for scale in (1, 2, 2)] for h, w in shapes]
    write_packs({"lol": [Sample(*pictures) for pictures in flat]}, tmp_path)
    assert [sample.small.shape[:2] for sample in read_packs(tmp_path)["lol"]] == list(shapes)


def test_a_missing_pack_is_named(tmp_path: Path, sets: dict[str, list[Sample]]) -> None:
    files = write_packs(sets, tmp_path, limit=24_000)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=files[1].name):
        read_packs(tmp_path)


def test_the_plan_is_rehearsed_and_not_done_twice(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "read_recipe", lambda name: msgspec.structs.replace(read_recipe(name), **TINY))
    write_packs(sets, tmp_path / "data")
    command = ["train", str(tmp_path / "data"), str(tmp_path / "out"), "--steps", "2", "--sitting", "99"]
    plan.main(command)
    summary = json.loads((tmp_path / "out" / "plan.json").read_bytes())
    assert summary.keys() == {job.name for job in plan.JOBS}
    assert all(job["scores"]["steps"] == 2 and job["scores"]["step_ms"] > 0 for job in summary.values())
    assert "held_out_psnr_db" in summary["paper-best-2"]["scores"]
    assert "held_out_psnr_db" not in summary["field"]["scores"]
    assert read_recipe("field-text").phases
    assert not summary["field"]["recipe"]["phases"], "packs hold the dark pictures at full size nearly as they are"
    assert {name for name in summary if Weights(tmp_path / "out" / name).card.began_with_all} == {"field"}
    for job in summary.values():
        assert len(job["scores"]["eval15"]["pictures"]) == 2
        assert 0 < job["scores"]["eval15"]["psnr_db"] <= job["scores"]["eval15"]["psnr_gt_mean_db"] + 0.01
    learned = load_network(SHIPPED / "field" / NUMBERS).state_dict()
    begun = load_network(tmp_path / "out" / "field" / NUMBERS).state_dict()
    assert all((begun[name] - learned[name]).abs().max() < 0.01 for name in learned), "it begins with what ships"
    assert [summary[f"paper-best-{seed}"]["recipe"]["seed"] for seed in (1, 2, 3)] == [1, 2, 3]
    numbers = Weights(tmp_path / "out" / "field").file(NUMBERS)
    assert numbers.stat().st_size < 2.2 * sum(value.numel() for value in load_network(numbers).parameters())
    capsys.readouterr()
    plan.main(command)
    assert capsys.readouterr().out.count("done before") == len(plan.JOBS)


def test_a_small_plan_trains_the_small_network_on_small_batches_with_the_seed_that_is_given(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = {"crop": (32, 32)}
    monkeypatch.setattr(plan, "read_recipe", lambda name: msgspec.structs.replace(read_recipe(name), **crops))
    write_packs(sets, tmp_path / "data")
    options = ["--steps", "1", "--sitting", "99", "--small", "--seed", "7", "--only", "table2-le-dr-ff", "table2-le-dr"]
    plan.main(["train", str(tmp_path / "data"), str(tmp_path / "out"), *options])
    recipe = json.loads((tmp_path / "out" / "plan.json").read_bytes())["table2-le-dr"]["recipe"]
    given = json.loads(msgspec.json.encode(read_recipe("table2-le-dr")))
    assert recipe == given | {"network": "neid-live", "batch": 4, "whole": 0.1, "seed": 7, "crop": [32, 32], "steps": 1}
    assert load_network(tmp_path / "out" / "table2-le-dr" / NUMBERS).config.parts == ("subpixels", "detail")


@pytest.mark.parametrize("rehearsed", [["--small"], ["--seed", "7"], ["--steps", "1"]], ids=lambda words: words[0])
def test_a_rehearsal_is_not_taken_for_the_run_itself(
    tmp_path: Path,
    sets: dict[str, list[Sample]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rehearsed: list[str],
) -> None:
    short = TINY | {"network": "neid-lite", "steps": 2}
    monkeypatch.setattr(plan, "read_recipe", lambda name: msgspec.structs.replace(read_recipe(name), **short))
    write_packs(sets, tmp_path / "data")
    jobs = ["--only", "table2-le-dr-ff", "table2-le-dr"]
    command = ["train", str(tmp_path / "data"), str(tmp_path / "out"), "--sitting", "99", *jobs]
    plan.main([*command, *rehearsed])
    before = (tmp_path / "out" / "plan.json").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        plan.main(command)
    assert ended.value.code == 1
    told = "done before with other settings; give another OUT"
    assert capsys.readouterr().out.splitlines() == [f"table2-le-dr-ff: {told}", f"table2-le-dr: {told}"]
    assert (tmp_path / "out" / "plan.json").read_bytes() == before
    plan.main([*command, *rehearsed])
    assert capsys.readouterr().out.count("done before\n") == 2


def test_a_job_that_was_killed_after_its_last_step_is_told_as_it_was(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "read_recipe", lambda name: msgspec.structs.replace(read_recipe(name), **TINY))
    (job,) = (job for job in plan.JOBS if job.name == "table2-le-dr-ff")
    plan.run_job(job, sets, tmp_path, Budget(steps=2), plan.recipe_of(job))
    told = Weights(tmp_path / job.name).card.scores
    (tmp_path / job.name / "card.json").unlink()
    plan.run_job(job, sets, tmp_path, Budget(steps=2), plan.recipe_of(job))
    again = Weights(tmp_path / job.name).card.scores
    assert again == {name: told[name] for name in ("steps", "held_out_psnr_db", "held_out_on_the_way", "eval15")}
    assert again["steps"] == 2


def test_the_held_out_scenes_are_trained_on_where_nothing_is_left_to_be_chosen(sets: dict[str, list[Sample]]) -> None:
    lol, night, day = plan.pairs(read_recipe("field-text"), sets)
    assert [*lol] == [*sets["lol"], *sets["held_out"]]
    assert (night, day) == (sets["night"], sets["day"])
    assert [*plan.pairs(read_recipe("field"), sets)[0]] == sets["lol"]


def test_a_job_that_the_sitting_has_no_time_for_is_not_begun(
    tmp_path: Path, sets: dict[str, list[Sample]], capsys: pytest.CaptureFixture[str]
) -> None:
    plan.run_plan(sets, tmp_path, minutes=100, sitting=1)
    told = capsys.readouterr().out
    paced = [job.name for job in plan.JOBS if job.paced_by]
    assert told.count("more than this sitting has left") == len(plan.JOBS) - len(paced)
    assert all(f"{name}: waits for table2-le-dr-ff" in told for name in paced)
    assert json.loads((tmp_path / "plan.json").read_bytes()) == {}


def test_a_job_that_fails_stops_no_other_and_is_told_by_the_exit_code(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def run_job(job: plan.Job, *_: object) -> None:
        begun.append(job.name)
        if job.name == "paper-best-2":
            raise RuntimeError("out of luck")

    monkeypatch.setattr(plan, "run_job", run_job)
    write_packs(sets, tmp_path / "data")
    jobs = ["paper-best-1", "paper-best-2", "paper-best-3"]
    with pytest.raises(SystemExit) as ended:
        plan.main(["train", str(tmp_path / "data"), str(tmp_path / "out"), "--sitting", "99", "--only", *jobs])
    assert ended.value.code == 1
    assert begun == jobs
    told = capsys.readouterr().out
    assert "paper-best-2: failed" in told
    assert "RuntimeError: out of luck" in told


FULL_DISK = """
import signal, sys
from pathlib import Path
import msgspec
from engines.errors import EngineError
from engines.training import plan
from engines.training.guard import Guard
from engines.training.recipe import read_recipe
from engines.training.train import Run
from tests.test_plan import TINY, sample

def step(*_):
    signal.raise_signal(signal.SIGINT)

def save(*_):
    raise EngineError("no room")

signal.signal(signal.SIGINT, signal.default_int_handler)
Guard.step, Run.save = step, save
plan.read_recipe = lambda name: msgspec.structs.replace(read_recipe(name), **TINY)
sets = {"lol": [sample(1)], "held_out": [sample(3)], "night": [sample(4)], "day": [sample(4, day=True)]}
jobs = [job for job in plan.JOBS if job.name in ("paper-best-2", "paper-best-3")]
try:
    plan.run_plan(sets, Path(sys.argv[1]), minutes=9, sitting=99, jobs=jobs, steps=2)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_the_plan_even_where_the_disk_is_full(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.splitlines() == ["paper-best-2: 4.5 minutes at most", "interrupted"], done.stderr
    assert done.stderr == "no room\n"


def test_the_jobs_that_are_chosen_share_all_minutes(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: dict[str, Budget] = {}
    monkeypatch.setattr(plan, "run_job", lambda job, _sets, _out, budget, _small: budgets.update({job.name: budget}))
    chosen = [job for job in plan.JOBS if job.name in ("field", "paper")]
    assert plan.run_plan(sets, tmp_path, minutes=8, sitting=99, jobs=chosen) == []
    field, paper = (budget.minutes for budget in budgets.values())
    assert field + paper == pytest.approx(8)
    assert field / paper == pytest.approx(0.2 / 0.04)


def test_rows_of_table_2_take_as_many_steps_as_the_costliest_did(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: dict[str, Budget] = {}
    monkeypatch.setattr(plan, "run_job", lambda job, _sets, _out, budget, _small: budgets.update({job.name: budget}))
    (tmp_path / "table2-le-dr-ff").mkdir()
    rows = [job for job in plan.JOBS if job.name.startswith("table2")]
    card = {"scores": {"steps": 7341}, "recipe": msgspec.to_builtins(plan.recipe_of(rows[0]))}
    (tmp_path / "table2-le-dr-ff" / "card.json").write_text(json.dumps(card))
    assert plan.run_plan(sets, tmp_path, minutes=4, sitting=99, jobs=rows) == []
    assert budgets == dict.fromkeys(("table2-le-dr", "table2-le", "table2-unet"), Budget(steps=7341))


def test_a_job_that_was_interrupted_needs_what_is_left_of_its_minutes_alone(
    tmp_path: Path, sets: dict[str, list[Sample]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets: list[Budget] = []
    monkeypatch.setattr(plan, "run_job", lambda _job, _sets, _out, budget, _small: budgets.append(budget))
    (job,) = (job for job in plan.JOBS if job.name == "paper")
    (tmp_path / "paper").mkdir()
    for seconds, begun in ((0.0, 0), (240.0, 1)):
        torch.save({"seconds": seconds}, tmp_path / "paper" / plan.CHECKPOINT)
        plan.run_plan(sets, tmp_path, minutes=5, sitting=3, jobs=[job])
        assert budgets == [Budget(minutes=5)] * begun, "the minutes count over all sittings"
    assert "needs 5.0 minutes" in capsys.readouterr().out


def test_the_plan_s_shares_are_the_whole() -> None:
    assert sum(job.share for job in plan.JOBS) == pytest.approx(1)


def test_the_plan_needs_nothing_that_a_bare_machine_with_a_gpu_lacks() -> None:
    lacks = ["av", "onnx", "openvino", "pydantic", "zmq"]
    code = f"import engines.training.plan, sys; print(sorted({{*{lacks}}} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_share_of_the_nights_and_days_is_taken_evenly() -> None:
    samples = [sample(seed) for seed in range(9)]
    assert [some.mean for some in plan.some_of(samples, 1.0)] == [some.mean for some in samples]
    assert [some.mean for some in plan.some_of(samples, 1 / 3)] == [0.5, 4.5, 8.5]
    assert plan.some_of([], 0.5) == []
