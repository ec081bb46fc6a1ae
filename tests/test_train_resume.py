from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import msgspec
import pytest
import torch

from engines.cards import NUMBERS
from engines.data.pairs import Sample
from engines.errors import EngineMismatch
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.training import train as training
from engines.training.recipe import Recipe
from tests.command import ROOT
from tests.training import CPU, STEADY, recipe, sample


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
        held_out = training.HeldOut([sample()], lambda step, score: told.append((step, score)))
        budget = training.Budget(steps=steps)
        pairs = ([sample()], [], [])
        return training.train(best, pairs, budget, tmp_path / "c.pt", lambda *_: None, held_out=held_out, device=CPU)

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
    with pytest.raises(EngineMismatch, match=r"c\.pt was started with learning_rate = 0\.0004, not 0\.0003; give"):
        training.Run.begin(recipe(learning_rate=3e-4), numbers).load(tmp_path / "c.pt")
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(), tmp_path, {})
    with pytest.raises(EngineMismatch, match="started with other numbers"):
        training.Run.begin(recipe(), numbers).load(tmp_path / "c.pt")
    training.Run.begin(recipe()).save(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match="started with random numbers"):
        training.Run.begin(recipe(), numbers).load(tmp_path / "c.pt")
    training.Run.begin(recipe(), teacher=numbers).save(tmp_path / "c.pt")
    training.Run.begin(recipe(), teacher=numbers).load(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match="started with another teacher"):
        training.Run.begin(recipe()).load(tmp_path / "c.pt")


def test_a_checkpoint_of_before_a_field_of_the_recipe_goes_on_with_its_usual_value_alone(tmp_path: Path) -> None:
    training.Run.begin(recipe()).save(tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    del state["origin"]["recipe"]["wide"]
    torch.save(state, tmp_path / "c.pt")
    training.Run.begin(recipe()).load(tmp_path / "c.pt")
    with pytest.raises(EngineMismatch, match=r"c\.pt was started with wide = 0\.0, not 0\.35"):
        training.Run.begin(recipe(wide=0.35)).load(tmp_path / "c.pt")


SIGNALLED = """
import logging, signal, sys
from pathlib import Path
from engines.training import train as training
from engines.training.guard import Guard
from tests.training import CPU, recipe, sample

def stop(*_):
    raise KeyboardInterrupt

def guarded(self, optimiser, norm):
    taken.append(1)
    if len(taken) == 3:
        signal.raise_signal(number)
    step(self, optimiser, norm)

logging.basicConfig(format="%(message)s")
number, taken, step, Guard.step = int(sys.argv[2]), [], Guard.step, guarded
signal.signal(number, stop)
pairs, budget = ([sample()], [], []), training.Budget(steps=5)
try:
    training.train(recipe(), pairs, budget, Path(sys.argv[1]), lambda *_: None, device=CPU)
except KeyboardInterrupt:
    print(len(taken), signal.getsignal(number) is stop)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_ends_the_run_after_it_and_the_checkpoint_holds_the_step(
    tmp_path: Path, number: signal.Signals
) -> None:
    def train(checkpoint: Path) -> Neid:
        budget = training.Budget(steps=5)
        return training.train(recipe(), ([sample()], [], []), budget, checkpoint, lambda *_: None, device=CPU)

    cut = tmp_path / "cut.pt"
    command = [sys.executable, "-c", SIGNALLED, str(cut), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "3 True\n"), done.stderr
    assert done.stderr == f"interrupted after step 3; saved to {cut}; run the same command to resume\n"
    assert training.read_trials(cut)[0] == 3
    whole, resumed = train(tmp_path / "whole.pt"), train(cut)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


CLOSED_TERMINAL = """
import errno, signal, sys
from pathlib import Path
from engines.training import train as training
from tests.training import CPU, recipe, sample

def validate(*_):
    signal.raise_signal(signal.SIGHUP)
    return 20.0

def told(*_):
    raise OSError(errno.EIO, "Input/output error")

signal.signal(signal.SIGHUP, signal.SIG_DFL)
training.validate, training.TRY_EVERY["cpu"] = validate, 2
held_out = training.HeldOut([sample()], told)
pairs, budget = ([sample()], [], []), training.Budget(steps=3)
training.train(recipe(), pairs, budget, Path(sys.argv[1]), lambda *_: None, held_out=held_out, device=CPU)
"""


def test_a_terminal_that_is_closed_during_a_score_costs_neither_the_step_nor_the_score(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLOSED_TERMINAL, str(tmp_path / "c.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGHUP, done.stderr
    assert training.read_trials(tmp_path / "c.pt") == (2, [(2, 20.0)])


def test_a_run_that_goes_on_with_other_pairs_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def learn(pair: Sample, steps: int) -> None:
        budget = training.Budget(steps=steps)
        training.train(recipe(), ([pair], [], []), budget, tmp_path / "c.pt", lambda *_: None, device=CPU)

    learn(sample(), 1)
    learn(sample(), 2)
    assert not caplog.messages
    learn(replace(sample(), large=255 - sample().large), 3)
    assert caplog.messages == [
        f"{tmp_path}/c.pt was started with other pairs; from step 2 on it learns from the new ones"
    ]


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
