"""Photos made into what field cameras would send of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest
from PIL import Image

from engines.data import overlay, photos
from engines.data.coded import at_bit_rate
from engines.data.darken import DECODE, Night, darken, encode, gather, record, visible
from engines.data.lamps import POWER, lamps
from engines.data.lol import Picture, double, halve
from engines.data.pairs import Sample
from engines.data.photos import (
    VIEW,
    WIDE_VIEW,
    day_samples,
    grey,
    night_samples,
    read_samples,
    read_scenes,
    send,
    shade,
    view,
    weather,
)
from engines.evaluation.scores import psnr
from engines.training.recipe import LARGEST_WIDE_CROP
from tests.training import scene, write_lol

WIDE = (8_000_000, 8_000_001)
CLEAR = Night(exposure=1.0, photons=1e9, read_noise=0.0)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No lamps, infrared, shadow, text or crushed black, a wide link, scenes as they are; every day is damaged."""
    monkeypatch.setattr(photos, "AS_IT_IS", 1.0)
    for name in ("GREY", "LIT", "CRUSHED", "OVERLAID", "SHADED", "UNDAMAGED"):
        monkeypatch.setattr(photos, name, 0.0)
    monkeypatch.setattr(photos, "BIT_RATES", WIDE)
    return monkeypatch


def same(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("small", "large", "dark"))


def test_a_night_is_dark_and_its_target_is_the_photo(plain: pytest.MonkeyPatch) -> None:
    photo = scene(64, 96)
    (night,) = night_samples([photo[None]], 1, seed=1)
    assert night.small.shape == (32, 48, 3)
    assert night.small.mean() < 0.6 * photo.mean()
    assert np.array_equal(night.large, photo)
    assert night.dark.shape == photo.shape
    assert night.dark.mean() == pytest.approx(night.small.mean(), rel=0.3, abs=4)


def test_a_camera_loses_what_is_below_its_black_and_sends_the_rest_lower() -> None:
    steps = np.repeat(np.arange(0, 256, 5, dtype=np.uint8), 3).reshape(1, -1, 3)
    crushing = Night(exposure=1.0, photons=1e9, read_noise=0.0, crushed=20, pedestal=(2, 0, 5))
    sent = darken(steps, crushing, np.random.default_rng(1))
    assert (sent[:, :5] == (2, 0, 5)).all()
    assert np.array_equal(sent[:, 5:], np.minimum(steps[:, 5:].astype(int) - 20 + (2, 0, 5), 255))
    assert np.array_equal(encode(gather(steps, crushing), crushing), sent)
    kept = visible(gather(steps, crushing), crushing)
    assert kept[0, :8].tolist() == pytest.approx([0, 0, 0, 0, 0, 5 / 6, 1, 1])
    assert (visible(gather(steps, CLEAR), CLEAR) == 1).all()


@pytest.mark.parametrize("level", [0.05, 0.4])
def test_noise_is_that_of_photons_and_of_reading(level: float) -> None:
    night = Night(photons=1_000.0, read_noise=0.004)
    sent = record(np.full((300, 300, 3), level, np.float32), night, np.random.default_rng(1))
    assert DECODE.take(sent).var() == pytest.approx(level / 1_000 + 0.004**2, rel=0.05)


def test_a_cast_changes_the_colours_of_the_light() -> None:
    light = gather(np.full((2, 2, 3), 255, np.uint8), Night(exposure=0.5, cast=(0.8, 1.0, 1.25)))
    assert np.allclose(light, (0.4, 0.5, 0.625))


@pytest.mark.parametrize("wrong", [{"crushed": -1.0}, {"crushed": 255.0}, {"pedestal": (0.0, 300.0, 0.0)}])
def test_a_black_that_no_camera_has_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="crushed and pedestal must be at least 0 and below 255"):
        Night(**wrong)


def test_what_a_camera_crushed_to_black_stays_dark_in_the_target_and_the_rest_is_the_photo(
    plain: pytest.MonkeyPatch,
) -> None:
    plain.setattr(photos, "CRUSHED", 1.0)
    plain.setattr(photos, "EXPOSURE", (0.02, 0.0201))  # of 80 and 240 are left 14 and 41
    plain.setattr(photos, "CRUSHED_BELOW", (20.0, 20.01))
    photo = np.full((128, 256, 3), 80, np.uint8)
    photo[:, 128:] = 240
    for night in night_samples([photo[None]], 4, seed=1):
        lost, kept, soft = night.large[:, :118], night.large[:, 138:], night.large[:, 118:138].mean((0, 2))
        assert np.abs(lost.astype(int) - 80 * photos.LEFT).max() <= 1
        assert np.abs(kept.astype(int) - 240).max() <= 1
        assert (np.diff(soft) >= 0).all()
        assert np.median(night.small[:, :58]) <= photos.PEDESTAL + photos.PEDESTAL_COLOUR + 1
        assert night.small[:, 70:].mean() > night.small[:, :58].mean() + 10
        assert night.dark[:, :118].max() <= photos.PEDESTAL + photos.PEDESTAL_COLOUR
        assert night.mean == 160, "of the day, by which nights are evened out"


def test_noise_does_not_lift_what_is_crushed_above_black(plain: pytest.MonkeyPatch) -> None:
    plain.setattr(photos, "CRUSHED", 1.0)
    plain.setattr(photos, "EXPOSURE", (1e-6, 1.1e-6))
    plain.setattr(photos, "PEDESTAL", 0.0)
    plain.setattr(photos, "PEDESTAL_COLOUR", 0.0)
    for night in night_samples([np.full((1, 64, 96, 3), 120, np.uint8)], 20, seed=1):
        assert np.mean(night.small > 1) < 0.05


def test_some_nights_lose_what_is_darkest_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "BIT_RATES", WIDE)
    photo = np.full((1, 64, 96, 3), 40, np.uint8)
    darker = [night.large.mean() < 0.9 * (night.mean or 0) for night in night_samples([photo], 60, seed=1)]
    assert 0.1 < np.mean(darker) < 0.6


def test_a_shadow_darkens_one_side_of_a_whole_clip_by_day_and_is_part_of_its_target(plain: pytest.MonkeyPatch) -> None:
    clip = np.full((2, 128, 192, 3), 150, np.uint8)
    for seed in range(20):
        first, second = shade(clip, np.random.default_rng(seed))
        assert np.array_equal(first, second)
        assert 40 < first.min() < 125
        assert first.max() == 150
        assert 0.02 < (first[..., 0] < 140).mean() < 0.98
    plain.setattr(photos, "SHADED", 1.0)
    for day in day_samples([clip[:1]], 4, seed=1):
        assert np.ptp(day.large) > 10
        assert np.abs(halve(day.large).astype(int) - day.small).mean() < 8, "and the camera saw it"


def test_text_is_in_every_picture_that_is_sent_and_as_bright_in_the_target(plain: pytest.MonkeyPatch) -> None:
    plain.setattr(photos, "OVERLAID", 1.0)
    plain.setattr(overlay, "WHITE", 1.0)
    plain.setattr(overlay, "BOXED", 0.0)
    plain.setattr(overlay, "OUTLINED", 0.0)
    plain.setattr(overlay, "HEIGHT", (0.1, 0.11))
    grey = np.full((1, 256, 384, 3), 120, np.uint8)
    for sample in (*night_samples([grey], 3, seed=1), *day_samples([grey], 3, seed=1)):
        text = sample.large[..., 1] > 200
        assert 0.001 < text.mean() < 0.3
        assert sample.small[halve(sample.large)[..., 1] > 200].mean() > 180
        assert sample.small[~text[::2, ::2]].mean() < 125
    without = night_samples([grey], 1, seed=1)[0]
    plain.setattr(photos, "OVERLAID", 0.0)
    assert night_samples([grey], 1, seed=1)[0].mean == without.mean == pytest.approx(120, abs=1)


def test_a_day_s_target_is_the_double_of_its_clean_small_picture(plain: pytest.MonkeyPatch) -> None:
    photo = scene(128, 192)
    for day in day_samples([photo[None]], 4, seed=1):
        assert day.small.shape == (64, 96, 3)
        assert 0 < np.abs(day.small.astype(int) - halve(day.large)).mean() < 8
        assert np.array_equal(day.dark, day.large)
    plain.setattr(photos, "UNDAMAGED", 1.0)
    for day in day_samples([photo[None]], 4, seed=1):
        assert np.array_equal(day.large, double(day.small))


def test_scenes_are_shown_at_one_to_five_times_their_size_and_some_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wave of 8 pixels tells by how much it was enlarged."""
    wave = (120 + 100 * np.sin(np.arange(480) * 2 * np.pi / 8)).astype(np.uint8)
    photo = np.broadcast_to(wave[None, None, :, None], (1, 320, 480, 3))
    shown = [view(photo, np.random.default_rng(seed)) for seed in range(60)]
    assert {some.shape for some in shown} >= {(1, 320, 480, 3), (1, *VIEW, 3)}
    assert all(
        side % 32 == 0 and side <= most for some in shown for side, most in zip(some.shape[1:3], VIEW, strict=True)
    )
    waves = [np.abs(np.fft.rfft(some[0, 0, :, 0] - some.mean())) for some in shown]
    factors = [some.shape[2] / spectrum.argmax() / 8 for some, spectrum in zip(shown, waves, strict=True)]
    assert 0.15 < np.mean([factor == 1.0 for factor in factors]) < 0.45
    assert 4 < max(factors) < 5.5
    monkeypatch.setattr(photos, "AS_IT_IS", 1.0)
    assert np.array_equal(view(photo, np.random.default_rng(1)), photo)


def test_what_is_shown_of_an_enlarged_scene_is_everywhere_in_it_and_moves_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(photos, "AS_IT_IS", 0.0)
    monkeypatch.setattr(photos, "ENLARGED", (4.0, 4.001))
    slope = np.broadcast_to(np.linspace(0, 250, 480, dtype=np.float32)[None, :, None], (320, 480, 3)).astype(np.uint8)
    clip = np.stack([slope, 255 - slope])
    shown = [view(clip, np.random.default_rng(seed)) for seed in range(40)]
    means = [some[0].mean() for some in shown]
    assert min(means) < 60
    assert max(means) > 190
    assert all(some[0].mean() + some[1].mean() == pytest.approx(255, abs=1) for some in shown)


def test_the_largest_crop_of_a_recipe_with_wide_pairs_fits_them_twice() -> None:
    assert tuple(2 * 2 * side for side in LARGEST_WIDE_CROP) == WIDE_VIEW


@pytest.mark.parametrize("sides", [(288, 448), (320, 480), (448, 1024)])
def test_a_wide_pair_shows_its_scene_so_large_that_it_fills_the_view(sides: tuple[int, int]) -> None:
    photo = scene(*sides)[None]
    assert {view(photo, np.random.default_rng(seed), wide=True).shape for seed in range(12)} == {(1, *WIDE_VIEW, 3)}


def test_wide_pairs_are_added_to_nights_and_days_where_they_are_asked_for(
    tmp_path: Path, plain: pytest.MonkeyPatch
) -> None:
    write_lol(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(scene(288, 448)).save(folder / f"{number}.png")
    usual, _ = read_samples(tmp_path, folder, seed=1)
    wider, _ = read_samples(tmp_path, folder, seed=1, wide=True)
    small = (WIDE_VIEW[0] // 2, WIDE_VIEW[1] // 2)
    for kind in (1, 2):
        assert all(same(a, b) for a, b in zip(usual[kind], wider[kind], strict=False)), (
            "the usual ones stay as they are"
        )
        assert [pair.small.shape[:2] for pair in wider[kind][len(usual[kind]) :]] == [small]


def test_larger_photos_are_made_small_when_they_are_read(tmp_path: Path) -> None:
    Image.fromarray(scene(1500, 2100)).save(tmp_path / "a.png")
    (photo,) = read_scenes(tmp_path)
    assert photo.shape == (1, 704, 1024, 3)


def test_samples_depend_on_the_seed_and_their_number_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "BIT_RATES", WIDE)
    pictures = [scene(64, 96)[None], scene(64, 96)[None, ::-1].copy()]
    for make in (night_samples, day_samples):
        first, again, other = make(pictures, 4, 1), make(pictures, 6, 1), make(pictures, 4, 2)
        assert all(same(a, b) for a, b in zip(first, again[:4], strict=True))
        assert not any(same(a, b) for a, b in zip(first, other, strict=True))
        assert not same(again[0], again[2])  # of the same photo


def test_infrared_pairs_have_no_colour(plain: pytest.MonkeyPatch) -> None:
    plain.setattr(photos, "GREY", 1.0)
    plain.setattr(photos, "LIT", 1.0)
    for sample in (*night_samples([scene()[None]], 3, 1), *day_samples([scene()[None]], 3, 1)):
        for picture in (sample.small, sample.large, sample.dark):
            assert (picture == picture[..., :1]).all()
            assert picture.std() > 0


def test_some_pairs_are_infrared_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "BIT_RATES", WIDE)
    for make in (night_samples, day_samples):
        shares = np.mean([np.ptp(sample.large, axis=2).max() == 0 for sample in make([scene(32, 48)[None]], 60, 3)])
        assert 0.03 < shares < 0.35


def test_lamps_are_bright_in_the_night_and_in_its_target_and_nothing_else_is_changed(
    plain: pytest.MonkeyPatch,
) -> None:
    photo = np.full((160, 256, 3), 90, np.uint8)
    dark = night_samples([photo[None]], 6, seed=4)
    plain.setattr(photos, "LIT", 1.0)
    for night, unlit in zip(night_samples([photo[None]], 6, seed=4), dark, strict=True):
        assert unlit.small.max() < 120
        lamp = night.large.max(2) == 255
        assert 0 < lamp.mean() < 0.1
        inside = lamp.reshape(80, 2, 128, 2).all((1, 3))  # the whole of a small pixel
        assert inside.any()
        assert night.small.max(2)[inside].mean() > 200
        assert night.dark.max(2)[lamp].min() > 230
        assert np.median(night.large) == pytest.approx(90, abs=6)
        assert (night.large >= photo).all()


def test_lamps_outshine_the_sensor_and_their_glow_falls() -> None:
    light = lamps(160, 256, np.random.default_rng(2))
    assert light.dtype == np.float32
    assert light.min() >= 0
    assert light.max() > POWER[0]
    assert 0 < np.quantile(light, 0.1) < np.median(light) < 0.2


@pytest.mark.parametrize(("hevc", "codec"), [(0.0, "h264"), (1.0, "hevc")], ids=["h264", "hevc"])
def test_a_link_damages_what_it_sends_and_a_thin_one_more(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hevc: float, codec: str
) -> None:
    sending = mock.Mock(wraps=at_bit_rate)
    monkeypatch.setattr(photos, "at_bit_rate", sending)
    monkeypatch.setattr(photos, "HEVC", hevc)
    clean = np.kron(scene(96, 144), np.ones((2, 2, 1), np.uint8))
    scores = []
    for bit_rate in (800_000, 100_000):
        monkeypatch.setattr(photos, "BIT_RATES", (bit_rate, bit_rate + 1))
        arrived = [send([gather(clean, CLEAR)], CLEAR, np.random.default_rng(seed)) for seed in range(3)]
        scores.append(np.mean([psnr(picture, clean) for picture in arrived]))
    assert 20 < scores[1] < scores[0] - 1 < 50
    assert {call.args[3] for call in sending.call_args_list} == {codec}
    assert capfd.readouterr() == ("", "")


def test_what_arrives_last_is_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "BIT_RATES", WIDE)
    light = gather(scene(96, 144), CLEAR)
    for seed in range(4):
        arrived = send([light], CLEAR, np.random.default_rng(seed)).astype(int)
        error = [np.abs(np.roll(arrived, move, axis=1) - encode(light)).mean() for move in (-1, 0, 1)]
        assert error[1] == min(error)
        assert error[1] < 3


@pytest.mark.parametrize("level", [10, 90, 250])
def test_no_weather_makes_a_night_of_a_day(level: int) -> None:
    picture: Picture = np.full((8, 8, 3), level, np.uint8)
    means = [weather(picture, np.random.default_rng(seed)).mean() for seed in range(20)]
    assert min(means) >= photos.DAY_MEAN - 1
    assert np.std(means) > 0 or level < photos.DAY_MEAN / 2


def test_grey_keeps_brightness() -> None:
    picture = np.full((2, 2, 3), (200, 100, 50), np.uint8)
    assert (grey(picture) == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


def write_video(path: Path, pictures: Iterable[Picture]) -> None:
    """480x320 in H.264 at 25 pictures a second, hardly damaged."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", 25, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 480, 320, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def moving(number: int) -> Picture:
    """A bright square that goes to the right by 4 pixels each picture."""
    picture = np.full((320, 480, 3), 120, np.uint8)
    picture[100:150, 4 * number : 4 * number + 50] = 250
    return picture


def test_scenes_are_photos_and_bright_parts_of_videos_and_nothing_else(tmp_path: Path) -> None:
    Image.fromarray(scene(500, 300)).save(tmp_path / "a.png")
    Image.fromarray(scene(100, 100)).save(tmp_path / "b-small.png")
    (tmp_path / "c.txt").write_text("no picture")
    (tmp_path / "d").mkdir()
    (tmp_path / "._e.jpg").write_bytes(b"what a Mac leaves beside a file")
    night, day = (np.full((320, 480, 3), level, np.uint8) for level in (30, 120))
    write_video(tmp_path / "e.mp4", [*[day] * 100, *[night] * 100, *map(moving, range(20))])
    photo, first, last = read_scenes(tmp_path)
    assert photo.shape == (1, 288, 480, 3)
    assert first.shape == last.shape == (8, 320, 480, 3)
    assert np.ptp(first) < 8
    columns = [np.argmax(picture[120, :, 0] > 200) for picture in last]
    assert columns == [0, 4, 8, 12, 16, 20, 24, 28]


def test_each_of_several_videos_is_looked_at_in_places_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "PART", (288, 448))
    columns = np.repeat(np.linspace(90, 250, 480)[None, :, None], 320, axis=0).repeat(3, axis=2).astype(np.uint8)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / name, [columns] * 8)
    places = [scene[0].mean() for scene in read_scenes(tmp_path)]
    assert np.ptp(places) > 1
    assert places == [scene[0].mean() for scene in read_scenes(tmp_path)]


def test_a_video_s_night_shows_its_own_movement_and_its_target_is_the_last_picture(plain: pytest.MonkeyPatch) -> None:
    clip = np.stack([moving(number) for number in range(8)])
    (night,), (day,) = night_samples([clip], 1, seed=1), day_samples([clip], 1, seed=1)
    assert np.array_equal(night.large, clip[-1])
    for small in (night.small, day.small):
        row = small[62].mean(1)
        assert row[16:38].mean() > 1.2 * row[60:].mean()  # the square is where the last picture has it,
        assert row[:12].mean() < 1.1 * row[60:].mean()  # and no longer where the first had it


def test_a_folder_without_scenes_and_a_broken_photo_are_told(tmp_path: Path) -> None:
    Image.fromarray(scene(100, 100)).save(tmp_path / "small.png")
    with pytest.raises(FileNotFoundError, match=r"no photo and no bright video of at least 448x288 pixels \(\.avi"):
        read_scenes(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"broken\.png: not a picture"):
        read_scenes(tmp_path)


def test_that_no_scene_can_be_held_out_is_told_before_anything_is_learned(tmp_path: Path) -> None:
    lol = write_lol(tmp_path / "lol")
    for side in ("low", "high"):
        (lol / "our485" / side / "665.png").unlink()
    with pytest.raises(FileNotFoundError, match="lol: our485 has none of the held-out scenes 660 to 697"):
        read_samples(lol, None, seed=1)
    (train, *_), held_out = read_samples(lol, None, seed=1, hold_out=False)
    assert (len(train), held_out) == (3, [])
