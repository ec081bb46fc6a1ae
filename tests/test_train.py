from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from engines.cards import NUMBERS, Card, Weights, write_card
from engines.checkpoint import load_network
from engines.data.pairs import Sample, batch, draw, shared_region, small_sizes
from engines.errors import EngineMismatch, EngineMissing
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.training import train as training
from engines.training.guard import Guard
from engines.training.recipe import RECIPES, Recipe, learning_rate, read_recipe
from engines.training.steps import Lesson, Steps, detail_target, half_window, loss_parts, train_step
from tests.test_check import ROOT, nightbridge


def scene(height: int = 64, width: int = 96) -> np.ndarray:
    """(H, W, 3) uint8: soft gradients with a bright and a coloured patch."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack((120 + 60 * np.sin(columns / 15), 100 + rows, 140 - rows), axis=2)
    picture[10:30, 20:50] = (220, 60, 40)
    return np.clip(picture, 0, 255).astype(np.uint8)


def sample() -> Sample:
    bright = scene()
    dark = (bright // 8).astype(np.uint8)
    return Sample(small=np.asarray(Image.fromarray(dark).reduce(2)), large=bright, dark=dark)


def recipe(**changes: object) -> Recipe:
    return msgspec.structs.replace(Recipe(batch=1, crop=(32, 48), warm_up_steps=1, mix=(1.0, 0.0, 0.0)), **changes)


CPU = torch.device("cpu")
"""What these tests look at is the same on a machine with a GPU."""
STEADY = {"batch": 2, "twins": 0.5, "noise": 3.0, "steady_weight": 1.0}
"""Half of the steps on twins, all of them with noise."""


class Lamp:
    """Stands for a network, and tells whether it is asked to compute in bfloat16."""

    config = NEID_LIVE

    def __call__(self, small: torch.Tensor) -> torch.Tensor:
        self.bfloat16 = torch.is_autocast_enabled("cpu")
        return torch.nn.functional.interpolate(small, scale_factor=2.0)


@pytest.mark.parametrize(("processor", "bfloat16"), [("AVX2", False), ("AVX512", True)])
def test_a_processor_without_avx512_does_not_imitate_bfloat16(
    processor: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: processor)
    network = Lamp()
    small, large = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)
    loss_parts(recipe(), network, small, large, None, (slice(32), slice(32)))
    assert network.bfloat16 is bfloat16


@pytest.mark.parametrize("changes", [{}, STEADY], ids=["plain", "steady"])
def test_one_tiny_pair_is_learned(tmp_path: Path, changes: dict[str, float]) -> None:
    losses: list[float] = []
    network = training.train(
        recipe(whole=0.0, ema=0.8, learning_rate=1e-3, **changes),
        ([sample()], [], []),
        training.Budget(steps=60),
        tmp_path / "checkpoint.pt",
        lambda _step, _share, parts: losses.append(parts["huber"]),
        device=CPU,
    )
    assert losses[-1] < losses[0] / 4
    assert training.validate(network, [sample()]) > 16


@pytest.mark.parametrize("changes", [{}, STEADY], ids=["plain", "steady"])
def test_an_interrupted_run_gives_the_same_network_as_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, float]
) -> None:
    def run(checkpoint: str, until: int) -> tuple[Neid, list[int]]:
        steps: list[int] = []

        def report(step: int, _share: float, _parts: dict[str, float]) -> None:
            steps.append(step)
            if step == until:
                raise KeyboardInterrupt

        budget = training.Budget(steps=6)
        pairs = ([sample()], [], [])
        return training.train(recipe(**changes), pairs, budget, tmp_path / checkpoint, report, device=CPU), steps

    with mock.patch.dict(training.SAVE_EVERY, cpu=2):
        whole, _ = run("whole.pt", 99)
        with pytest.raises(KeyboardInterrupt):
            run("cut.pt", 5)
        resumed, steps = run("cut.pt", 99)
    assert steps == [5, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_every_number_of_the_network_learns_from_twins() -> None:
    learning = recipe(**{**STEADY, "twins": 1.0})
    run = training.Run.begin(learning)
    _, chosen = training.choose(learning, [small_sizes([sample()]), [], []], 0.0, np.random.default_rng(1))
    region = shared_region(chosen.places, chosen)
    window = (slice(0, 24), slice(0, 24))
    parts = train_step(learning, run.network, run.optimiser, run.guard, batch([sample()], chosen), window, True, region)
    assert parts.keys() == learning.weights().keys()
    assert parts["steady"] > 0
    for name, parameter in run.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_steady_part_pulls_twins_together() -> None:
    learning = recipe(**{**STEADY, "twins": 1.0})
    network = training.Run.begin(learning).network
    _, chosen = training.choose(learning, [small_sizes([sample()]), [], []], 0.0, np.random.default_rng(1))
    small, large, _ = batch([sample()], chosen)
    region, window = shared_region(chosen.places, chosen), (slice(0, 24), slice(0, 24))

    def apart() -> torch.Tensor:
        return loss_parts(learning, network, small, large, None, window, region)["steady"]

    before = apart()
    before.backward()
    for parameter in network.light.parameters():
        assert parameter.grad is not None
        parameter.data -= 0.1 * parameter.grad
    assert 0 < apart().item() < 0.9 * before.item()


def test_stored_weights_build_their_own_network(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, read_recipe("field"), tmp_path / "mine", {"held_out_psnr_db": 20.5})
    weights = Weights(tmp_path / "mine")
    assert weights.card.scores == {"held_out_psnr_db": 20.5}
    assert weights.card.recipe["network"] == "neid-live"
    picture = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_network(weights.file(NUMBERS))(picture), network(picture))


def test_the_shipped_recipe_is_the_default_one_made_steady() -> None:
    assert read_recipe("field") == Recipe(noise=3.0, twins=0.25, steady_weight=1.5)
    assert not {"steady"} & Recipe(steady_weight=1.5).weights().keys()


def test_every_shipped_recipe_can_be_read() -> None:
    networks = {path.stem: read_recipe(path.stem).network for path in RECIPES.glob("*.toml")}
    ours = {name for name in networks if name.startswith("field")}
    lite = {"field-lite", "field-lite-second", "field-lite-taught", "field-lite-wide"}
    assert ours == {
        "field",
        "field-second",
        "field-finish",
        "field-last",
        "field-even",
        "field-sharp",
        "field-sizes",
        "field-wide",
        *lite,
    }
    assert {networks.pop(name) for name in lite} == {"neid-lite"}
    assert {networks.pop(name) for name in ours - lite} == {"neid-live"}
    assert set(networks) >= {"paper", "paper-best", "table2-unet", "table2-le", "table2-le-dr", "table2-le-dr-ff"}
    assert set(networks.values()) == {"neid"}


def test_the_rows_of_table_2_differ_in_the_network_s_parts_alone() -> None:
    rows = [read_recipe(f"table2-{name}") for name in ("unet", "le", "le-dr", "le-dr-ff")]
    assert [len(row.parts) for row in rows] == [0, 1, 2, 3]
    assert len({msgspec.json.encode(msgspec.structs.replace(row, parts=())) for row in rows}) == 1
    assert [row.with_detail(0) for row in rows] == [False, False, True, True]


def test_the_paper_s_schedule_drops_at_a_quarter_and_at_half_of_121000_steps() -> None:
    paper = read_recipe("paper")
    rates = [learning_rate(paper, step, step / 121_000) for step in (0, 30_249, 30_250, 60_499, 60_500, 120_999)]
    assert rates == [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert (paper.steps, paper.batch, paper.crop) == (121_000, 8, (128, 128))
    assert paper.weights() == {"huber": 1.0, "colour": 0.1, "detail": 0.1}


@pytest.mark.parametrize("name", ["paper", "table2-unet", "table2-le", "table2-le-dr", "table2-le-dr-ff"])
def test_a_recipe_takes_steps_and_its_weights_are_stored(tmp_path: Path, name: str) -> None:
    small = msgspec.structs.replace(read_recipe(name), network="neid-live", batch=1, crop=(32, 32))
    told: list[dict[str, float]] = []
    pairs = ([sample()], [], [])
    network = training.train(
        small,
        pairs,
        training.Budget(steps=2),
        tmp_path / "c.pt",
        lambda _step, _share, parts: told.append(parts),
        device=CPU,
    )
    assert told[0].keys() == small.weights().keys()
    training.store(network, small, tmp_path / "mine", {})
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_network(tmp_path / "mine" / NUMBERS)(picture), network(picture), atol=1e-5)


def test_a_run_can_begin_with_stored_weights(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, Recipe(), tmp_path, {})
    begun = training.Run.begin(Recipe(seed=9), tmp_path / NUMBERS)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, begun.network.encoder.state_dict()[name])


@pytest.mark.parametrize(
    ("stored", "config", "reason"),
    [
        (None, None, "header too large"),
        ({"a": torch.zeros(1)}, None, "does not say which network it is for"),
        ({"a": torch.zeros(1)}, {}, "missing required field `name`"),
        ({"a": torch.zeros(1)}, asdict(NEID_LIVE), "Missing key"),
    ],
    ids=["text", "no network", "no dimensions", "no numbers"],
)
def test_a_file_that_holds_no_network_is_told_by_its_name(
    tmp_path: Path, stored: dict[str, torch.Tensor] | None, config: dict[str, object] | None, reason: str
) -> None:
    path = tmp_path / "numbers.safetensors"
    if stored is None:
        path.write_text("seed = 1\n")
    else:
        save_file(stored, path, None if config is None else {"config": json.dumps(config)})
    with pytest.raises(EngineMismatch, match=f"^{path} .*{reason}") as told:
        load_network(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"x\n", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_checkpoint_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(EngineMismatch, match=f"^{path} cannot be read as a checkpoint: "):
        training.Run.begin(Recipe()).load(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [{"network": {}}, [1, 2], torch.zeros(3)], ids=["a network", "a list", "a tensor"])
def test_a_file_of_torch_that_is_no_checkpoint_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(EngineMismatch, match=r"checkpoint\.pt cannot be read as a checkpoint: it holds something else"):
        training.Run.begin(Recipe()).load(tmp_path / "checkpoint.pt")


def test_a_run_cannot_begin_with_the_numbers_of_another_network(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    with pytest.raises(EngineMismatch, match=r"safetensors holds a network neid-live; the recipe is for neid$"):
        training.Run.begin(Recipe(network="neid"), tmp_path / NUMBERS)


def test_a_narrower_network_begins_with_the_channels_of_a_wider_one(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    wide = load_network(tmp_path / NUMBERS).state_dict()["light.subpixels.bias"]
    run = training.Run.begin(Recipe(network="neid-lite"), tmp_path / NUMBERS)
    assert torch.equal(run.network.state_dict()["light.subpixels.bias"], wide)
    assert torch.equal(run.average["light.subpixels.bias"], wide)


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_every_row_and_column_can_be_in_the_window_of_ssim(size: tuple[int, int]) -> None:
    large = torch.zeros(1, 3, *size)
    for seed in range(200):
        large[(..., *half_window(large, np.random.default_rng(seed)))] += 1
    assert large.min() > 0


def test_a_checkpoint_of_a_gpu_goes_on_on_the_cpu(tmp_path: Path) -> None:
    def run(steps: int, checkpoint: Path) -> Neid:
        budget = training.Budget(steps=steps)
        return training.train(recipe(), ([sample()], [], []), budget, checkpoint, lambda *_: None, device=CPU)

    run(1, tmp_path / "cpu.pt")
    state = torch.load(tmp_path / "cpu.pt", weights_only=True)
    state["optimiser"]["param_groups"][0] |= {"capturable": True, "fused": True, "lr": torch.tensor(4e-4)}
    torch.save(state, tmp_path / "gpu.pt")
    ours, theirs = run(2, tmp_path / "cpu.pt"), run(2, tmp_path / "gpu.pt")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_best_average_is_kept_and_outlives_a_pause(tmp_path: Path) -> None:
    best = msgspec.structs.replace(recipe(), select="best")
    scores = iter([19.0, 21.0, 20.0, 18.0, 17.0])
    at_best: dict[str, torch.Tensor] = {}
    told: list[tuple[int, float]] = []

    def validate(network: Neid, _samples: object) -> float:
        if (score := next(scores)) == 21.0:
            at_best.update({name: value.clone() for name, value in network.state_dict().items()})
        return score

    def run(steps: int) -> Neid:
        trial = training.Trial([sample()], lambda step, score: told.append((step, score)))
        budget = training.Budget(steps=steps)
        pairs = ([sample()], [], [])
        return training.train(best, pairs, budget, tmp_path / "c.pt", lambda *_: None, trial=trial, device=CPU)

    with mock.patch.object(training, "validate", validate), mock.patch.dict(training.TRY_EVERY, cpu=2):
        run(5)
        chosen = run(8)
    assert told == [(2, 19.0), (4, 21.0), (5, 20.0), (6, 18.0), (8, 17.0)]
    assert all(torch.equal(value, at_best[name]) for name, value in chosen.state_dict().items())


def test_the_best_cannot_be_selected_without_pairs_to_try_on(tmp_path: Path) -> None:
    best = msgspec.structs.replace(recipe(), select="best")
    with pytest.raises(ValueError, match="no held-out pairs"):
        training.train(best, ([sample()], [], []), training.Budget(steps=1), tmp_path / "c.pt", lambda *_: None)


def test_a_checkpoint_of_before_best_was_kept_can_be_resumed(tmp_path: Path) -> None:
    run = training.Run.begin(recipe())
    run.follow(0.9)
    run.save(tmp_path / "old.pt")
    state = torch.load(tmp_path / "old.pt", weights_only=True)
    torch.save(
        {name: state[name] for name in ("network", "optimiser", "average", "step", "seconds")}, tmp_path / "old.pt"
    )
    again = training.Run.begin(recipe())
    again.load(tmp_path / "old.pt")
    assert (again.step, again.best) == (1, None)


def test_a_checkpoint_goes_on_with_nothing_but_what_it_was_begun_with(tmp_path: Path) -> None:
    numbers = tmp_path / NUMBERS
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(), tmp_path, {})
    begun = training.Run.begin(recipe(), numbers)
    begun.save(tmp_path / "c.pt")
    training.Run.begin(recipe(), numbers).load(tmp_path / "c.pt")
    training.Run.begin(recipe()).load(tmp_path / "c.pt")  # the numbers need not be there any more
    with pytest.raises(
        EngineMismatch, match=r"c\.pt was begun with learning_rate = 0\.0004, and not with 0\.0003; give"
    ):
        training.Run.begin(recipe(learning_rate=3e-4), numbers).load(tmp_path / "c.pt")
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(), tmp_path, {})
    with pytest.raises(EngineMismatch, match="begun with other numbers"):
        training.Run.begin(recipe(), numbers).load(tmp_path / "c.pt")
    training.Run.begin(recipe()).save(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match="begun with random numbers"):
        training.Run.begin(recipe(), numbers).load(tmp_path / "c.pt")
    training.Run.begin(recipe(), teacher=numbers).save(tmp_path / "c.pt")
    training.Run.begin(recipe(), teacher=numbers).load(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match="begun with another teacher"):
        training.Run.begin(recipe()).load(tmp_path / "c.pt")


def test_a_checkpoint_of_before_a_field_of_the_recipe_goes_on_with_its_usual_value_alone(tmp_path: Path) -> None:
    training.Run.begin(recipe()).save(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    del state["origin"]["recipe"]["wide"]
    torch.save(state, tmp_path / "c.pt")
    training.Run.begin(recipe()).load(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match=r"c\.pt was begun with wide = 0\.0, and not with 0\.35"):
        training.Run.begin(recipe(wide=0.35)).load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("history", "learned"),
    [
        ({}, False),
        ({"hold_out": True}, False),
        ({"hold_out": False}, True),
        ({"stages": [{"hold_out": False}, {"hold_out": True}]}, True),
        ({"stages": [{"hold_out": True}]}, False),
    ],
)
def test_scores_on_scenes_that_the_numbers_to_begin_with_learned_are_known_as_such(
    history: dict[str, object], learned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(), tmp_path, {})
    card = Weights(tmp_path).card
    card.recipe = history
    write_card(tmp_path, card)
    for start in (tmp_path / NUMBERS, None):  # the numbers need not be named again
        training.train(
            recipe(),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / "c.pt",
            lambda *_: None,
            start,
            training.Trial([sample()]),
        )
        assert training.read_origin(tmp_path / "c.pt")["knows_all"] == learned
        assert ("learned the held-out scenes" in caplog.text) == learned
        caplog.clear()


def test_numbers_that_learned_all_scenes_are_known_as_such_stages_later(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True)
    training.store(network, Recipe(hold_out=False), tmp_path, {})
    start = tmp_path / NUMBERS
    for stage in ("second", "third"):
        folder = tmp_path / stage
        folder.mkdir()
        samples = ([sample()], [], [])
        budget = training.Budget(steps=1)
        made = training.train(recipe(), samples, budget, folder / "c.pt", lambda *_: None, start)
        assert training.read_origin(folder / "c.pt")["knows_all"]
        training.store(made, recipe(), folder, {}, training.read_origin(folder / "c.pt"))
        start = folder / NUMBERS
    assert not Card(name="new", network="neid-live", files={}).learned_all()


def test_engine_files_of_older_numbers_are_gone_when_new_ones_are_stored(tmp_path: Path) -> None:
    for name in ("fp32.onnx", "int8.xml", "int8.bin"):
        (tmp_path / name).write_bytes(b"of older numbers")
    (tmp_path / "checkpoint.pt").write_bytes(b"kept")
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}
    assert {path.name for path in tmp_path.iterdir()} == {NUMBERS, "card.json", "checkpoint.pt"}


def test_files_that_are_nobody_s_engine_files_outlive_new_numbers(tmp_path: Path) -> None:
    foreign = {"start.safetensors": b"to begin with", "calibration.bin": b"one's own", "other.onnx": b"as well"}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}


def test_a_card_tells_the_commit_at_which_its_training_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, commit in enumerate(("0a" * 20, "0b" * 20), start=1):  # the second sitting is at a later one
        monkeypatch.setattr(training, "checked_out", lambda commit=commit: commit)
        budget = training.Budget(steps=number)
        training.train(recipe(), ([sample()], [], []), budget, tmp_path / "c.pt", lambda *_: None, device=CPU)
    training.store(Neid(NEID_LIVE), recipe(), tmp_path, {}, training.read_origin(tmp_path / "c.pt"))
    assert Weights(tmp_path).card.commit == "0a" * 20


def test_the_commit_that_is_checked_out_is_known_where_the_project_is_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ("git", "-C", str(tmp_path), *who, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (tmp_path / "project").mkdir()
    (tmp_path / "file").write_text("as it was")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "v1")
    monkeypatch.setattr(training, "ROOT", tmp_path)
    assert training.checked_out() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("changed")
    assert training.checked_out() == f"{git('rev-parse', 'HEAD')}-dirty"
    monkeypatch.setattr(training, "ROOT", tmp_path / "project")  # as installed into somebody else's checkout
    assert training.checked_out() == ""


def test_the_average_follows_the_network_by_its_decay_and_faster_at_the_beginning() -> None:
    run = training.Run.begin(recipe())
    average = {name: value.clone().double() for name, value in run.average.items()}
    for step, kept in ((1, 2 / 11), (2, 3 / 12), (3, 0.3), (4, 0.3)):  # (1 + step) / (10 + step), 0.3 at most
        for parameter in run.network.parameters():
            parameter.data.fill_(10.0 * step)
        run.follow(0.3)
        average = {name: kept * value + (1 - kept) * 10 * step for name, value in average.items()}
        for name, value in average.items():
            assert torch.allclose(run.average[name].double(), value, atol=1e-4), name
    assert run.step == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_ends_the_run_after_it_and_the_checkpoint_holds_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def train(checkpoint: Path) -> Neid:
        budget = training.Budget(steps=5)
        return training.train(recipe(), ([sample()], [], []), budget, checkpoint, lambda *_: None, device=CPU)

    def guarded(self: Guard, optimiser: torch.optim.Optimizer, norm: torch.Tensor) -> None:
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(number)
        step(self, optimiser, norm)

    whole, taken, step = train(tmp_path / "whole.pt"), [], Guard.step
    usual = signal.signal(number, stop)
    try:
        monkeypatch.setattr(Guard, "step", guarded)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut.pt")
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, usual)
    assert training.read_trials(tmp_path / "cut.pt")[0] == 3
    cut = f"{tmp_path}/cut.pt"
    assert caplog.messages == [f"interrupted after step 3; {cut} holds it, and the same call goes on"]
    resumed = train(tmp_path / "cut.pt")
    assert len(taken) == 5
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


CLOSED_TERMINAL = """
import errno, signal, sys
from pathlib import Path
from engines.training import train as training
from tests.test_train import CPU, recipe, sample

def validate(*_):
    signal.raise_signal(signal.SIGHUP)
    return 20.0

def told(*_):
    raise OSError(errno.EIO, "Input/output error")

signal.signal(signal.SIGHUP, signal.SIG_DFL)
training.validate, training.TRY_EVERY["cpu"] = validate, 2
trial = training.Trial([sample()], told)
pairs, budget = ([sample()], [], []), training.Budget(steps=3)
training.train(recipe(), pairs, budget, Path(sys.argv[1]), lambda *_: None, trial=trial, device=CPU)
"""


def test_a_terminal_that_is_closed_during_a_score_costs_neither_the_step_nor_the_score(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLOSED_TERMINAL, str(tmp_path / "c.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGHUP, done.stderr
    assert training.read_trials(tmp_path / "c.pt") == (2, [(2, 20.0)])


def test_numbers_that_are_stored_already_cost_no_engine_file_and_no_card(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE)
    training.store(network, Recipe(), tmp_path, {})
    (tmp_path / "fp32.onnx").write_bytes(b"of these numbers")
    card = Weights(tmp_path).card
    card.precision_loss_db = {"int8": 0.03}
    write_card(tmp_path, card)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    training.store(network, Recipe(), tmp_path, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "card.json").write_text("no card")
    training.store(network, Recipe(), tmp_path, {})
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}


def test_a_run_that_goes_on_with_other_pairs_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def learn(pair: Sample, steps: int) -> None:
        budget = training.Budget(steps=steps)
        training.train(recipe(), ([pair], [], []), budget, tmp_path / "c.pt", lambda *_: None, device=CPU)

    learn(sample(), 1)
    learn(sample(), 2)
    assert not caplog.messages
    learn(replace(sample(), large=255 - sample().large), 3)
    assert caplog.messages == [f"{tmp_path}/c.pt was begun with other pairs; from step 2 on it learns these"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from engines.errors import EngineError
from engines.training import train as training
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
run = training.Run.begin(training.Recipe())
run.save(folder / "checkpoint.pt")
training.store(training.Neid(training.CONFIGS["neid-live"]), training.Recipe(), folder, {})
before = {path.name: path.read_bytes() for path in folder.iterdir()}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for write in (
    lambda: run.save(folder / "checkpoint.pt"),
    lambda: training.store(training.Neid(training.CONFIGS["neid-live"]), training.Recipe(), folder, {}),
):
    try:
        write()
    except EngineError as error:
        print(str(error).partition(":")[0])
assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
"""


def test_a_full_disk_is_told_and_leaves_checkpoint_and_weights_as_they_were(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{tmp_path / name} cannot be written" for name in ("checkpoint.pt", NUMBERS)]


def test_the_network_learns_from_pictures_as_video_carries_them() -> None:
    """Red and blue stripes of a pixel each, which 4:2:0 makes one purple: the network never sees them apart."""
    seen: list[torch.Tensor] = []
    stripes = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).T.view(1, 3, 1, 2).repeat(1, 1, 32, 16)
    for subsampled in (True, False):
        run = training.Run.begin(recipe(subsampled=subsampled))
        run.network.register_forward_pre_hook(lambda _network, given: seen.append(given[0]))
        window = (slice(0, 24), slice(0, 24))
        pictures = [stripes, *[stripes] * 2]
        train_step(recipe(subsampled=subsampled), run.network, run.optimiser, run.guard, pictures, window, False)
    colours = [(picture[:, 0] - picture[:, 2]).abs().max().item() for picture in seen]
    assert colours[0] < 0.2 < colours[1]


def test_no_step_is_longer_than_the_clip_allows() -> None:
    norms = []
    for clip in (1e-3, 1e9):
        learning = recipe(clip=clip)
        run = training.Run.begin(learning)
        window = (slice(0, 24), slice(0, 24))
        whole = batch([sample()], draw([(32, 48)], (32, 48), 1, np.random.default_rng(1)))
        train_step(learning, run.network, run.optimiser, run.guard, whole, window, True)
        gradients = [parameter.grad for parameter in run.network.parameters() if parameter.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 0.1


@pytest.mark.parametrize(
    ("changes", "ratios"),
    [
        ({"evened": (0.0, 0.5)}, (4.0, 2.0)),
        ({"evened": (0.5, 0.0)}, (2.0, 4.0)),
        ({"evened_nearby": 0.5}, (2.0, 4.0)),
    ],
)
def test_lol_and_nights_are_each_learned_at_an_evened_brightness_and_days_as_they_are(
    changes: dict[str, object], ratios: tuple[float, float], tmp_path: Path
) -> None:
    """By half of the way on a scale of ratios: a quarter of the brightness becomes a half."""
    bright, levels = sample(), []
    dim = replace(bright, large=(bright.large // 4).astype(np.uint8))

    def spy(
        plan: Recipe, run: training.Run, samples: Sequence[Sequence[Sample]], taught: Sequence[Lesson | None]
    ) -> Steps:
        levels.extend([pair.large.mean() for pair in kind] for kind in samples)
        return training_steps(plan, run, samples, taught)

    training_steps = training.open_steps
    with mock.patch.object(training, "open_steps", spy):
        pairs, budget = ([bright, dim],) * 3, training.Budget(steps=1)
        training.train(recipe(**changes), pairs, budget, tmp_path / "c.pt", lambda *_: None, device=CPU)
    lol, night, day = levels
    assert (lol[0] / lol[1], night[0] / night[1]) == pytest.approx(ratios, rel=0.03)
    assert day == [bright.large.mean(), dim.large.mean()]


class Teacher(torch.nn.Module):
    """Stands for a network that makes the same bright grey of everything, at sides that it can take."""

    config = NEID_LIVE

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = small.shape
        assert (height % NEID_LIVE.multiple, width % NEID_LIVE.multiple) == (0, 0)
        return self.level.expand(count, channels, 2 * height, 2 * width)


def test_a_lesson_draws_the_target_to_the_teacher_s_picture_by_its_share() -> None:
    truth = torch.full((2, 3, 42, 58), 0.2)
    target = Lesson(Teacher(0.6), 0.25).target(torch.rand(2, 3, 21, 29), truth)
    assert target.shape == truth.shape
    assert torch.allclose(target, torch.tensor(0.3))
    assert not target.requires_grad
    assert torch.allclose(Lesson(Teacher(1.5), 1.0).target(torch.rand(2, 3, 21, 29), truth), torch.tensor(1.0))


def test_each_kind_of_pairs_has_its_own_lesson(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    lessons = training.lessons(recipe(taught=(0.5, 0.25, 0.0)), tmp_path / NUMBERS, CPU)
    assert [lesson and lesson.share for lesson in lessons] == [0.5, 0.25, None]
    bright = sample()
    pairs = ([bright], [bright], [bright])
    told = []
    for mix in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        learning = recipe(mix=mix, batch=1)
        run = training.Run.begin(learning)
        steps = training.open_steps(learning, run, pairs, [Lesson(Teacher(0.9), 1.0), Lesson(Teacher(0.0), 1.0), None])
        random = np.random.default_rng(3)
        kind, chosen = training.choose(learning, [small_sizes(some) for some in pairs], 1.0, random)
        told.append(steps.take(kind, chosen, 1, 0.0, random)["huber"])
    assert len({round(loss, 4) for loss in told}) == 3, told


def test_what_is_learned_with_a_teacher_is_the_teacher_s_picture(tmp_path: Path) -> None:
    """The truth is bright; the teacher, whose last layer makes 0.1 of everything, is not."""
    teacher = Neid(NEID_LIVE)
    with torch.no_grad():
        teacher.light.subpixels.weight.zero_()
        teacher.light.subpixels.bias.copy_(torch.tensor(0.1))  # type: ignore[union-attr]
    training.store(teacher, Recipe(), tmp_path, {})
    network = training.train(
        recipe(taught=(1.0, 0.0, 0.0), ema=0.8, learning_rate=1e-3),
        ([sample()], [], []),
        training.Budget(steps=40),
        tmp_path / "c.pt",
        lambda *_: None,
        device=CPU,
        teacher=tmp_path / NUMBERS,
    )
    small = torch.from_numpy(sample().small.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert network(small).mean().item() == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("taught", [(0.5, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_teacher_is_given_where_there_are_lessons_and_nowhere_else(
    taught: tuple[float, float, float], tmp_path: Path
) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    with pytest.raises(ValueError, match="a teacher must be given where the recipe has lessons"):
        training.train(
            recipe(taught=taught),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / "c.pt",
            lambda *_: None,
            teacher=None if any(taught) else tmp_path / NUMBERS,
        )


def test_nights_and_days_have_crops_of_two_sizes_large_ones_from_what_is_shown_large() -> None:
    small, large = (160, 240), (192, 304)
    learning = recipe(mix=(0.0, 0.5, 0.5), crop=(192, 288), batch=4)
    sizes = [[], [small, large, small], [large, small]]
    drawn = [training.choose(learning, sizes, 0.0, np.random.default_rng(seed)) for seed in range(60)]
    assert {chosen.size for _, chosen in drawn} == {(144, 224), (192, 288)}
    for kind, chosen in drawn:
        shown = {sizes[kind][place] for place in chosen.places[:, 0].tolist()}
        assert shown == {large} if chosen.size == (192, 288) else shown <= {small, large}
    assert {small, large} == {
        sizes[kind][place]
        for kind, chosen in drawn
        if chosen.size == (144, 224)
        for place in chosen.places[:, 0].tolist()
    }


def test_some_batches_of_nights_and_days_are_wide_and_the_others_show_nothing_of_wide_pairs() -> None:
    usual, wide = (192, 304), (384, 608)
    learning = recipe(mix=(0.2, 0.4, 0.4), crop=(192, 288), batch=4, wide=0.4, twins=0.5)
    sizes = [[(200, 300)], [usual, wide], [wide, usual]]
    drawn = [training.choose(learning, sizes, 0.0, np.random.default_rng(seed)) for seed in range(200)]
    widths = [chosen.size for kind, chosen in drawn if kind]
    assert 0.3 < np.mean([size == (384, 576) for size in widths]) < 0.5
    for kind, chosen in drawn:
        shown = {sizes[kind][place] for place in chosen.places[:, 0].tolist()}
        if kind and chosen.size == (384, 576):
            assert (shown, len(chosen.places), chosen.twins) == ({wide}, 1, False)
        elif kind:
            assert (shown, len(chosen.places)) == ({usual}, 4)
    assert any(chosen.twins for kind, chosen in drawn if kind)


def test_pairs_of_lol_are_learned_in_phases_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights: set[int] = set()

    def watched(samples: Sequence[Sample], *args: object) -> list[torch.Tensor]:
        heights.update(pair.small.shape[0] for pair in samples)
        return batch(samples, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("engines.training.steps.batch", watched)
    for phases, expected in ((False, {32}), (True, {32, 30})):
        heights.clear()
        training.train(
            recipe(phases=phases),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / f"{phases}",
            lambda *_: None,
        )
        assert heights == expected


def test_whole_pictures_come_at_the_end_and_crops_before() -> None:
    sizes = [[(100, 150)], [], []]
    learning = recipe(whole=0.25)
    sides = [training.choose(learning, sizes, share, np.random.default_rng(1))[1].size for share in (0, 0.74, 0.75, 1)]
    assert sides == [(32, 48), (32, 48), (100, 150), (100, 150)]


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    learning = recipe(learning_rate=4e-4, warm_up_steps=100)
    rates = [learning_rate(learning, step, share) for step, share in ((0, 0), (49, 0), (99, 0), (999, 0.5), (1999, 1))]
    assert rates == pytest.approx([4e-6, 2e-4, 4e-4, 2.005e-4, 1e-6], rel=1e-6)


def test_the_detail_branch_is_shown_the_dark_picture_bright_enough_to_learn_from() -> None:
    dark = torch.full((2, 3, 8, 8), 0.05)
    assert detail_target(recipe(), dark).mean().item() == pytest.approx(0.4)
    assert torch.equal(detail_target(recipe(detail_target="dark"), dark), dark)


def write_lol(folder: Path) -> Path:
    """Four pairs as LOL has them, one of them of a held-out scene."""
    for side, picture in (("low", sample().dark), ("high", sample().large)):
        (folder / "our485" / side).mkdir(parents=True)
        for number in (1, 2, 3, 665):
            Image.fromarray(picture).save(folder / "our485" / side / f"{number}.png")
    return folder


MINE = """
network = "neid-live"
batch = 2
crop = [32, 32]
mix = [1.0, 0.0, 0.0]
"""


def test_the_command_trains_by_a_recipe_goes_on_and_stores_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    lol = write_lol(tmp_path / "lol")
    command = ("train", "mine.toml", "--lol", str(lol), "--steps")
    first = nightbridge(tmp_path, *command, "2")
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert "raw PSNR" in first.stderr
    assert "1 pictures of held-out scenes" in first.stderr
    assert training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")[0] == 2
    weights = Weights(tmp_path / "runs" / "mine")
    assert weights.card.recipe["crop"] == [32, 32]
    assert weights.card.scored == weights.id
    again = nightbridge(tmp_path, *command, "3")
    assert again.returncode == 0, again.stderr
    steps, trials = training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")
    assert (steps, [step for step, _ in trials]) == (3, [2, 3])
    learned = Weights(tmp_path / "runs" / "mine").id
    assert learned != weights.id
    used_up = nightbridge(tmp_path, *command, "3", COLUMNS="200")
    assert used_up.returncode == 0, used_up.stderr
    assert "the budget was used up before, and nothing was learned: give a larger one" in used_up.stderr
    assert "used up" not in again.stderr
    assert Weights(tmp_path / "runs" / "mine").id == learned


def test_the_steps_of_a_recipe_end_the_command_s_run(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE + "steps = 3\n")
    done = nightbridge(tmp_path, "train", "mine.toml", "--lol", str(write_lol(tmp_path / "lol")))
    assert done.returncode == 0, done.stderr
    assert training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")[0] == 3


def test_the_command_scores_nothing_on_scenes_that_were_learned_before_and_takes_a_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(hold_out=False), tmp_path / "all", {})
    lol = str(write_lol(tmp_path / "lol"))
    start = str(tmp_path / "all" / NUMBERS)
    done = nightbridge(
        tmp_path, "train", "mine.toml", "--lol", lol, "--steps", "1", "--start", start, "--seed", "7", COLUMNS="200"
    )
    assert done.returncode == 0, done.stderr
    assert "learned the held-out scenes" in done.stderr
    assert "pictures of held-out scenes" not in done.stderr
    card = Weights(tmp_path / "runs" / "mine").card
    assert (card.scores, card.scored, card.recipe["seed"]) == ({}, "", 7)


def test_the_command_says_what_it_misses(tmp_path: Path) -> None:
    lol = write_lol(tmp_path / "lol")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.toml").write_text(MINE)
    for more, code, told in (
        (("field",), 2, "give --photos"),
        (("field-lite-taught", "--photos", "empty"), 2, "has lessons (`taught`): give --teacher"),
        (("paper-best", "--teacher", "mine.toml"), 2, "has no lessons (`taught`)"),
        (("field", "--photos", "empty"), 1, "empty: no photo and no bright video of at least 448x288 pixels"),
        (("feild",), 2, "no recipe 'feild': give one of field"),
    ):
        done = nightbridge(tmp_path, "train", *more, "--lol", str(lol), COLUMNS="200")
        assert done.returncode == code, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_wrong_recipe_is_told_by_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("batsch = 4\n")
    with pytest.raises(EngineMismatch, match="batsch"):
        read_recipe(str(file))
    file.write_text('network = "neit"\n')
    with pytest.raises(EngineMismatch, match="'neit'; it must be one of neid, neid-live, neid-lite"):
        read_recipe(str(file))
    file.write_text('parts = ["subpixels", "fusing"]\n')
    with pytest.raises(EngineMismatch, match="fusing without detail"):
        read_recipe(str(file))
    file.write_text('select = "best"\nhold_out = false\n')
    with pytest.raises(EngineMismatch, match="needs held-out scenes"):
        read_recipe(str(file))
    file.write_text("exposure_free = 1.5\n")
    with pytest.raises(EngineMismatch, match="exposure_free is 1"):
        read_recipe(str(file))
    for text, told in (
        ("twins = -0.1", "twins is -0.1; it must be from 0 to 1"),
        ("evened = [0.0, 1.5]", "evened is [0.0, 1.5]; all must be from 0 to 1"),
        ("taught = [0.5, -0.5, 0.0]", "taught is [0.5, -0.5, 0.0]; all must be from 0 to 1"),
        ("evened_nearby = 2.0", "evened_nearby is 2.0; it must be from 0 to 1"),
        ("noise = -1.0", "noise is -1.0; it must be a number from 0 on"),
        ("twin_noise = -1.0", "twin_noise is -1.0; it must be a number from 0 on"),
        ("steady_weight = nan", "steady_weight is nan"),
        ("twins = 0.5\nbatch = 3", "batch is 3; with twins it must be even"),
        ("mix = [0.7, 0.2, 0.2]", "mix is [0.7, 0.2, 0.2]; its shares must be from 0 on, and 1 together"),
        ("mix = [1.5, -0.5, 0.0]", "mix is [1.5, -0.5, 0.0]; its shares"),
        ("batch = 0", "batch is 0; it must be a number from 1 on"),
        ("steps = -5", "steps is -5; it must be a number from 1 on"),
        ("gain = 0.5", "gain is 0.5; it must be a number from 1 on"),
        ("seed = -1", "seed is -1; it must be a number from 0 on"),
        ("learning_rate = nan", "learning_rate is nan; it must be a number from 0 on"),
        ("weight_decay = -1.0", "weight_decay is -1.0; it must be a number from 0 on"),
        ("ssim_weight = -1.0", "ssim_weight is -1.0; it must be a number from 0 on"),
        ("ema = 2.0", "ema is 2.0; it must be from 0 to 1"),
        (
            "drops = [[0.5, 1e-6], [0.25, 1e-5]]",
            "drops has the shares [0.5, 0.25]; they must be from 0 to 1, and ascend",
        ),
        ("drops = [[25.0, 1e-5]]", "drops has the shares [25.0]; they must be from 0 to 1"),
        ("drops = [[0.25, -1e-3]]", "drops has the rates [-0.001]; they must be numbers from 0 on"),
        ("drops = [[0.25, nan]]", "drops has the rates [nan]; they must be numbers from 0 on"),
        ("clip = -1.0", "clip is -1.0; it must be above 0"),
        ("wide = 1.5", "wide is 1.5; it must be from 0 to 1"),
        ("wide = 0.5\ncrop = [208, 304]", "crop is [208, 304]; with wide it must be [192, 304] at most"),
        ("crop = [32, 8]", "crop is [32, 8]; both sides must be 16 or more"),
        ("crop = [32, 16]\nbatch = 2\ntwins = 0.5", "crop is [32, 16]; both sides must be 24 or more"),
        ("huber_weight = 0.0\nssim_weight = 0.0\nchroma_weight = 0.0", "chroma_weight are all 0; one of them must"),
    ):
        file.write_text(text)
        with pytest.raises(EngineMismatch, match=re.escape(told)):
            read_recipe(str(file))
    file.write_bytes(b"network = \xff")
    with pytest.raises(EngineMismatch, match=f"^{file}: "):
        read_recipe(str(file))
    with pytest.raises(EngineMissing, match="give one of field"):
        read_recipe("feild")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("changes", [{}, STEADY], ids=["plain", "steady"])
def test_captured_steps_learn_and_can_be_resumed_on_the_cpu(tmp_path: Path, changes: dict[str, float]) -> None:
    losses: list[float] = []
    pairs, checkpoint = ([sample()], [], []), tmp_path / "checkpoint.pt"
    learning = recipe(whole=0.0, ema=0.8, learning_rate=1e-3, **changes)
    network = training.train(
        learning, pairs, training.Budget(steps=300), checkpoint, lambda _s, _b, parts: losses.append(parts["huber"])
    )
    assert losses[-1] < losses[0] / 4
    assert training.validate(network, [sample()]) > 16
    training.train(learning, pairs, training.Budget(steps=302), checkpoint, lambda *_: None, device=CPU)
