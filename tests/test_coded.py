from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from engines.data.coded import Codec, at_bit_rate, at_rate_factor
from engines.evaluation.scores import psnr
from tests.test_flow import scene

RANDOM = np.random.default_rng(6)
GRAIN = RANDOM.integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)


CODECS = pytest.mark.parametrize("codec", ["h264", "hevc"])


@CODECS
def test_every_picture_comes_back_in_order(codec: Codec) -> None:
    grey = [np.full((32, 48, 3), 20 + 5 * number, np.uint8) for number in range(30)]
    coded = list(at_bit_rate(grey, 300_000, Fraction(25), codec))
    assert [each.y.shape for each in coded] == [(32, 48)] * 30
    assert [each.uv.shape for each in coded] == [(2, 16, 24)] * 30
    means = [each.rgb().mean() for each in coded]
    np.testing.assert_allclose(means, [picture.mean() for picture in grey], atol=2)


@CODECS
def test_the_bit_rate_is_kept_where_the_pictures_would_need_more(
    codec: Codec, capfd: pytest.CaptureFixture[str]
) -> None:
    octets = sum(each.octets for each in at_bit_rate(GRAIN, 100_000, Fraction(10), codec))
    assert 0.6 * 100_000 < 8 * octets / 4 < 1.3 * 100_000
    assert capfd.readouterr() == ("", "")


@CODECS
def test_a_larger_rate_factor_damages_more(codec: Codec) -> None:
    waves = scene(0, 0)
    fine, coarse = (psnr(at_rate_factor(waves, crf, codec), waves) for crf in (10, 45))
    assert fine > coarse + 5
