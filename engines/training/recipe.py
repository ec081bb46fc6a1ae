"""Recipes, which decide how a network is trained: typed TOML files, the shipped ones in `engines/training/recipes`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec

from engines.errors import EngineMismatch, UnknownName
from engines.network.config import CONFIGS, PARTS, Part

RECIPES = Path(__file__).parent / "recipes"

LEAST = {
    **dict.fromkeys(("batch", "steps", "gain"), 1),
    **dict.fromkeys(
        ("learning_rate", "warm_up_steps", "weight_decay", "detail_every", "noise", "twin_noise", "seed"), 0
    ),
    **dict.fromkeys(("huber_weight", "ssim_weight", "chroma_weight", "detail_weight", "steady_weight"), 0),
}
"""The least value of each number in a recipe, by name."""
LARGEST_WIDE_CROP = (192, 304)
"""The largest `crop` that fits, doubled, into wide pairs (`engines.data.photos.WIDE_VIEW`)."""
SMALLEST_CROP, SMALLEST_OF_TWINS = 16, 24
"""Pixels of a side: SSIM looks at half of the doubled picture, in windows of 11; twins show less of a crop."""


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the result of training, except for the data and the budget."""

    network: str = "neid-live"
    parts: tuple[Part, ...] = PARTS
    """The boxes of the paper's figure 3 that the network has beyond a plain U-net; fewer give the rows of table 2."""
    start: Literal["he", "paper"] = "he"
    """Initialisation, see `engines.network.neid.STARTS`."""
    batch: int = 4
    crop: tuple[int, int] = (192, 288)
    """Height and width of the small crops; the last part of the run, `whole`, uses whole LOL pictures."""
    whole: float = 0.3
    turn: float = 0.25
    """Share of the batches that are transposed: with the random flips, turned by 90 degrees."""
    mixup: float = 0.0
    """Share of the LOL batches in which every picture is blended with its neighbour."""
    subsampled: bool = True
    """Whether the small pictures pass through 8-bit 4:2:0, as all pictures do in use."""
    learning_rate: float = 4e-4
    warm_up_steps: int = 200
    drops: tuple[tuple[float, float], ...] = ()
    """(share of the budget, learning rate from there on), in order; without any the rate follows a cosine to 1e-6."""
    weight_decay: float = 1e-4
    """Of AdamW; at 0 it is Adam."""
    steps: int | None = None
    """Steps after which the run ends, if the budget does not end it sooner."""
    clip: float = 1.0
    ema: float = 0.999
    huber_weight: float = 10.0
    ssim_weight: float = 0.3
    colour: Literal["chroma", "hue"] = "chroma"
    """The colour loss: cosine of chroma vectors, or of hue and saturation as in equations 5 and 6."""
    chroma_weight: float = 0.05
    """Weight of the colour loss."""
    detail_weight: float = 1.0
    detail_every: int = 2
    """The detail branch is supervised in every n-th step, 0: never; its decoder costs as much as the light one."""
    detail_target: Literal["scaled", "dark"] = "scaled"
    """The dark picture, scaled to normal brightness or unchanged."""
    exposure_free: float = 0.0
    """Share of the Huber loss, 0 to 1, that is measured after scaling each picture to its target's mean; above 0, so is
    SSIM. The rest teaches exposure, which would otherwise be memorised scene by scene."""
    mix: tuple[float, float, float] = (0.7, 0.2, 0.1)
    """Shares of LOL, night and day batches."""
    gain: float = 1.0
    """Largest factor by which LOL's dark pictures are randomly made brighter or darker: exposure must be inferred from
    the picture, not memorised with the scene."""
    evened: tuple[float, float] = (0.0, 0.0)
    """How far, 0 to 1, the brightness of the targets moves to the common brightness of LOL's pairs, and of the night
    pairs, see `engines.data.pairs.even_out`; held-out pairs stay as they are."""
    evened_nearby: float = 0.0
    """The same for LOL's pairs alone, after `evened`: to the common brightness of each pair and its
    `engines.data.pairs.NEARBY` neighbours on either side, which mostly show the same place."""
    taught: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How far, 0 to 1, the bright pictures of LOL, night and day pairs move to the output of a teacher, a network
    trained before, for the same small picture; see `engines.training.steps.Lesson`."""
    noise: float = 0.0
    """Largest standard deviation of the noise added to the small pictures, in code values of 255; drawn for each."""
    twins: float = 0.0
    """Share of the batches of twins: half as many places, each shown twice, slightly moved and with its own noise."""
    twin_noise: float | None = None
    """Replaces `noise` in batches of twins: steadiness is learned from strong noise there, and sharpness from pictures
    with little noise elsewhere."""
    steady_weight: float = 0.0
    """Weight of the difference between the outputs for two twins, see `engines.training.losses.steady`."""
    phases: bool = False
    """Whether LOL's pairs are halved at all four offsets of a 2x2 square, see `engines.data.pairs.in_phases`."""
    wide: float = 0.0
    """Share of the night and day batches with a quarter as many crops, twice as high and wide; without twins."""
    hold_out: bool = True
    """Whether some scenes of LOL are held out for making choices; False once no choice is left."""
    select: Literal["last", "best"] = "last"
    """The averaged network at the end, or the one with the highest raw PSNR on the held-out scenes during training."""
    seed: int = 1

    def weights(self) -> dict[str, float]:
        """The weight of each part of the loss, by name; parts without one are not computed."""
        weights = {
            "huber": self.huber_weight * (1 - self.exposure_free),
            "structure": self.huber_weight * self.exposure_free,
            "ssim": self.ssim_weight,
            "colour": self.chroma_weight,
            "detail": self.detail_weight if "detail" in self.parts else 0.0,
            "steady": self.steady_weight if self.twins > 0 else 0.0,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def with_detail(self, step: int) -> bool:
        """Whether the detail branch is supervised in this step."""
        return "detail" in self.weights() and self.detail_every > 0 and step % self.detail_every == 0


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """The learning rate: linear warm-up by steps, then a cosine over the budget to 1e-6, or the recipe's drops."""
    warm = min(1.0, (step + 1) / max(1, recipe.warm_up_steps))
    if recipe.drops:
        rates = [rate for share, rate in recipe.drops if progress >= share]
        return warm * (rates[-1] if rates else recipe.learning_rate)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (1e-6 + (recipe.learning_rate - 1e-6) * cosine)


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by name, or another by the path of its TOML file; raises `UnknownName` or `EngineMismatch`."""
    path = RECIPES / f"{name}.toml" if "/" not in name and (RECIPES / f"{name}.toml").is_file() else Path(name)
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except FileNotFoundError:
        shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
        raise UnknownName(f"no recipe {name!r}: give one of {shipped}, or a TOML file") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EngineMismatch(f"{path}: {error}") from error
    if (wrong := _fault(recipe)) is not None:
        raise EngineMismatch(f"{path}: {wrong}")
    return recipe


def _fault(recipe: Recipe) -> str | None:
    """What is wrong with the values of a recipe, whose types are right."""
    if recipe.network not in CONFIGS:
        return f"network is {recipe.network!r}; it must be one of {', '.join(CONFIGS)}"
    if "fusing" in recipe.parts and "detail" not in recipe.parts:
        return "parts has fusing without detail; fusing mixes in what the detail branch knows"
    for name in ("whole", "turn", "mixup", "twins", "wide", "evened_nearby", "exposure_free", "ema"):
        if not 0 <= (share := getattr(recipe, name)) <= 1:
            return f"{name} is {share}; it must be from 0 to 1"
    for name in ("evened", "taught"):
        shares = getattr(recipe, name)
        if not all(0 <= share <= 1 for share in shares):
            return f"{name} is {list(shares)}; all must be from 0 to 1"
    if min(recipe.mix) < 0 or not math.isclose(sum(recipe.mix), 1, abs_tol=1e-9):
        return f"mix is {list(recipe.mix)}; its shares must be 0 or more, and add up to 1"
    for name, least in LEAST.items():
        if (value := getattr(recipe, name)) is not None and not least <= value < math.inf:
            return f"{name} is {value}; it must be a finite number, {least} or more"
    shares, rates = [share for share, _ in recipe.drops], [rate for _, rate in recipe.drops]
    if not all(0 <= share <= 1 for share in shares) or shares != sorted(shares):
        return f"drops has the shares {shares}; they must be from 0 to 1, and ascend"
    if not all(0 <= rate < math.inf for rate in rates):
        return f"drops has the rates {rates}; all must be finite numbers, 0 or more"
    if not recipe.clip > 0:
        return f"clip is {recipe.clip}; it must be above 0"
    smallest = SMALLEST_OF_TWINS if recipe.twins > 0 else SMALLEST_CROP
    if min(recipe.crop) < smallest:
        return f"crop is {list(recipe.crop)}; both sides must be {smallest} or more"
    if recipe.wide > 0 and not all(side <= most for side, most in zip(recipe.crop, LARGEST_WIDE_CROP, strict=True)):
        return f"crop is {list(recipe.crop)}; with wide it must be {list(LARGEST_WIDE_CROP)} at most"
    if not recipe.weights().keys() - {"detail", "steady"}:
        return "huber_weight, ssim_weight and chroma_weight are all 0; at least one must be above 0"
    if recipe.twins > 0 and recipe.batch % 2:
        return f"batch is {recipe.batch}; with twins it must be even"
    if recipe.select == "best" and not recipe.hold_out:
        return 'select is "best", which needs held-out scenes, and hold_out is false'
    return None
