"""Steps as CUDA graphs, with a stand-in for CUDA where there is none: a capture computes, its first replay does not."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch

from engines.data.pairs import Draw, Sample, batch, draw, small_sizes
from engines.errors import EngineError
from engines.training import graphs, guard, train
from engines.training.recipe import Recipe
from engines.training.steps import NO_LESSONS, EagerSteps, Lesson, train_step
from tests.training import sample

CPU = torch.device("cpu")
RECIPE = Recipe(batch=2, crop=(32, 32), ssim_weight=0.0, exposure_free=0.5, mix=(1.0, 0.0, 0.0), clip=float("inf"))


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[mock.Mock]:
    """The graphs that were captured; each knows the `pool` of its memory."""
    made: list[mock.Mock] = []

    def graph() -> mock.Mock:
        made.append(mock.Mock())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, len(made)))
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: nullcontext())

    def capture(graph: mock.Mock, *, pool: tuple[int, int] | None = None, **_: object) -> AbstractContextManager[None]:
        graph.pool = pool
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return made


def draws(turns: list[float], **options: float) -> list[Draw]:
    random = np.random.default_rng(5)
    return [draw(small_sizes([sample()]), (32, 32), 2, random, turn=turn, gain=1.2, **options) for turn in turns]


def steps_of(
    recipe: Recipe, *, as_graphs: bool, lessons: Sequence[Lesson | None] = NO_LESSONS
) -> tuple[train.Run, graphs.GraphSteps | EagerSteps]:
    run = train.Run.begin(recipe)
    for group in run.optimiser.param_groups:
        group["lr"] = torch.tensor(1.0)
    samples = ([sample()], [], [])
    if as_graphs:
        return run, graphs.GraphSteps(recipe, run.network, run.optimiser, samples, CPU, run.guard, lessons)
    return run, EagerSteps(recipe, run.network, run.optimiser, samples, run.guard, lessons)


@pytest.mark.parametrize("options", [{}, {"noise": 3.0, "twins": 1.0}], ids=["plain", "steady"])
def test_steps_on_a_gpu_learn_what_steps_on_the_cpu_learn(captured: list[mock.Mock], options: dict[str, float]) -> None:
    networks = []
    recipe = msgspec.structs.replace(RECIPE, steady_weight=1.0, **options)
    for as_graphs in (False, True):
        run, steps = steps_of(recipe, as_graphs=as_graphs)
        for step, chosen in enumerate(draws([0.0] * 2 * (graphs.WARM_UP + 1), **options)):
            parts = steps.take(0, chosen, step, 2**-10, np.random.default_rng(step))
        assert parts.keys() >= {"huber", "structure", "colour", *(["steady"] if options else [])}
        networks.append(run.network.state_dict())
    for name, value in networks[0].items():
        # rates are float32 on a device; a step that is left out moves every number by some 1e-3
        assert value.sub(networks[1][name]).abs().mean() < 5e-5, name
    assert len(captured) == 2  # with and without the detail branch


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_teacher_says_the_same_on_a_gpu_as_on_the_cpu_even_when_replayed(
    captured: list[mock.Mock], share: float
) -> None:
    teacher = train.Run.begin(msgspec.structs.replace(RECIPE, seed=9)).network.eval()
    (chosen,) = draws([0.0])
    recipe = msgspec.structs.replace(RECIPE, detail_weight=0.0)

    def losses(lessons: Sequence[Lesson | None], *, as_graphs: bool) -> list[float]:
        """Of steps that change nothing; the graph is captured on the way."""
        _, steps = steps_of(recipe, as_graphs=as_graphs, lessons=lessons)
        count = graphs.WARM_UP + 2
        return [steps.take(0, chosen, 0, 0.0, np.random.default_rng(1))["huber"] for _ in range(count)]

    taught = losses((Lesson(teacher, share), None, None), as_graphs=True)
    assert len(captured) == 1
    assert taught == pytest.approx(losses((Lesson(teacher, share), None, None), as_graphs=False), rel=1e-3)
    assert taught[-1] != pytest.approx(losses(NO_LESSONS, as_graphs=True)[-1], rel=0.05)


def test_each_kind_of_step_is_captured_once_and_then_replayed(captured: list[mock.Mock]) -> None:
    recipe = msgspec.structs.replace(RECIPE, detail_weight=0.0)
    _, steps = steps_of(recipe, as_graphs=True)
    for step, chosen in enumerate(draws([0.0, 1.0] * (graphs.WARM_UP + 3))):
        steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))
    assert [graph.replay.call_count for graph in captured] == [3, 3]


def test_all_graphs_share_their_memory(captured: list[mock.Mock]) -> None:
    _, steps = steps_of(msgspec.structs.replace(RECIPE, detail_weight=0.0), as_graphs=True)
    for step, chosen in enumerate(draws([0.0, 1.0] * (graphs.WARM_UP + 1))):
        steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))
    assert [graph.pool for graph in captured] == [(0, 0)] * 2


def test_pictures_take_as_much_room_as_they_have_whatever_the_largest_is() -> None:
    random = np.random.default_rng(7)
    pairs = []
    for height, width in ((40, 64), (32, 32), (64, 48)):
        sizes = ((height, width, 3), *((2 * height, 2 * width, 3),) * 2)
        pairs.append(Sample(*(random.integers(256, size=size, dtype=np.uint8) for size in sizes)))
    chosen = draw(small_sizes(pairs), (32, 32), 12, random)
    deck = graphs.Deck(pairs, CPU)
    made = deck.batch(chosen.places, chosen.light, chosen, torch.Generator())
    assert len({*chosen.places[:, 0].tolist()}) == 3
    assert all(map(torch.equal, made, batch(pairs, chosen)))
    rooms = [sum(getattr(pair, name).size for pair in pairs) for name in ("small", "large", "dark")]
    assert [pile.pixels.numel() for pile in deck.piles] == rooms


@pytest.mark.parametrize(("changes", "count"), [({}, 3), ({"detail_weight": 0.0}, 2), ({"detail_every": 0}, 2)])
def test_dark_pictures_are_on_the_device_where_the_detail_branch_is_supervised(
    captured: list[mock.Mock], monkeypatch: pytest.MonkeyPatch, changes: dict[str, float], count: int
) -> None:
    piled = mock.Mock(wraps=graphs.Pile)
    monkeypatch.setattr(graphs, "Pile", piled)
    _, steps = steps_of(msgspec.structs.replace(RECIPE, **changes), as_graphs=True)
    assert piled.call_count == count
    (chosen,) = draws([0.0])
    steps.take(0, chosen, 0, 1e-3, np.random.default_rng(1))


def test_once_a_step_cannot_be_captured_no_graph_is_replayed_any_more(
    captured: list[mock.Mock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed capture leaves of the memory that all share is nobody's to rely on."""
    _, steps = steps_of(msgspec.structs.replace(RECIPE, detail_weight=0.0), as_graphs=True)
    for step, chosen in enumerate(draws([0.0] * (graphs.WARM_UP + 1))):
        steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))
    (good,) = captured
    monkeypatch.setattr(torch.cuda, "graph", mock.Mock(side_effect=RuntimeError("out of memory")))
    for step, chosen in enumerate(draws([1.0] * (graphs.WARM_UP + 1) + [0.0])):
        steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))
    assert good.replay.call_count == 1
    assert len(captured) == 2


def test_where_a_step_cannot_be_captured_all_are_taken_one_operation_after_the_other(
    captured: list[mock.Mock], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused:
        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "graph", lambda *_args, **_options: Refused())
    recipe = msgspec.structs.replace(RECIPE, detail_weight=0.0)
    run, steps = steps_of(recipe, as_graphs=True)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    for step, chosen in enumerate(draws([0.0, 1.0] * (graphs.WARM_UP + 2))):
        last = {name: value.clone() for name, value in run.network.state_dict().items()}
        assert steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))["huber"] > 0
    now = run.network.state_dict()
    assert any((now[name] != last[name]).any() for name in before)
    assert len(captured) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graphs, so that steps are slower: operation not permitted when stream is capturing"
    ]


def test_twins_are_steps_of_their_own_and_each_graph_knows_where_its_noise_comes_from(
    captured: list[mock.Mock],
) -> None:
    recipe = msgspec.structs.replace(RECIPE, detail_weight=0.0, noise=3.0, twins=0.5, steady_weight=1.0)
    _, steps = steps_of(recipe, as_graphs=True)
    count = graphs.WARM_UP + 2
    for step, chosen in enumerate([*draws([0.0] * count, noise=3.0), *draws([0.0] * count, noise=3.0, twins=1.0)]):
        steps.take(0, chosen, step, 1e-3, np.random.default_rng(step))
    assert [graph.replay.call_count for graph in captured] == [2, 2]
    assert [graph.register_generator_state.call_count for graph in captured] == [1, 1]


def test_the_loss_is_looked_at_now_and_then_only(captured: list[mock.Mock]) -> None:
    recipe = msgspec.structs.replace(RECIPE, detail_weight=0.0)
    _, steps = steps_of(recipe, as_graphs=True)
    told = [
        steps.take(0, chosen, step, 1e-2, np.random.default_rng(step))["huber"]
        for step, chosen in enumerate(draws([0.0] * 4), start=1)
    ]
    assert len(set(told)) == 1
    (chosen,) = draws([0.0])
    assert steps.take(0, chosen, graphs.READ_EVERY, 1e-2, np.random.default_rng(1))["huber"] != told[0]


def test_spoiled_steps_are_looked_at_now_and_then_only_and_change_nothing(
    captured: list[mock.Mock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look waits for the GPU."""
    monkeypatch.setattr(guard, "MOST_IN_A_ROW", 3)
    run, steps = steps_of(msgspec.structs.replace(RECIPE, detail_weight=0.0, huber_weight=float("inf")), as_graphs=True)
    before = [number.clone() for number in run.network.state_dict().values()]
    at = [0, 1, 2, graphs.READ_EVERY - 1, graphs.READ_EVERY]
    for step, chosen in zip(at[:-1], draws([0.0] * 4), strict=True):
        steps.take(0, chosen, step, 1e-2, np.random.default_rng(step))
    (chosen,) = draws([0.0])
    with pytest.raises(EngineError, match=f"ended at step {graphs.READ_EVERY + 1}: .* in the last 4 steps"):
        steps.take(0, chosen, at[-1], 1e-2, np.random.default_rng(1))
    assert all(map(torch.equal, run.network.state_dict().values(), before))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_captured_step_changes_nothing_where_its_gradient_is_not_finite() -> None:
    device = torch.device("cuda")
    run = train.Run.begin(RECIPE, device=device)
    pictures = [torch.rand(2, 3, side, side, device=device) for side in (32, 64, 64)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))

    def step() -> None:
        train_step(RECIPE, run.network, run.optimiser, run.guard, pictures, graphs.ALL, False)

    with torch.cuda.stream(stream):
        for _ in range(graphs.WARM_UP):
            step()
        run.optimiser.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        graph.replay()
        before = [number.clone() for number in run.network.state_dict().values()]
        pictures[0].fill_(float("nan"))
        graph.replay()
        assert all(map(torch.equal, run.network.state_dict().values(), before))
        pictures[0].fill_(0.5)
        graph.replay()
    torch.cuda.synchronize(device)
    assert not all(map(torch.equal, run.network.state_dict().values(), before))
    assert run.guard.counts.tolist() == [0, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_replay_draws_the_noise_of_its_own_seed() -> None:
    device = torch.device("cuda")
    (chosen,) = draws([0.0], noise=5.0)
    deck, noise = graphs.Deck([sample()], device), torch.Generator(device)
    places, light = chosen.places.to(device), chosen.light.to(device)
    deck.batch(places, light, chosen, noise)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(noise)
    with torch.cuda.graph(graph):
        small, *_ = deck.batch(places, light, chosen, noise)
    made = []
    for seed in (1, 2, 1):
        noise.manual_seed(seed)
        graph.replay()
        made.append(small.clone())
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
