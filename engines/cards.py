"""Sets of weights on disk: a folder with a card and the files that the card vouches for.

card.json            what the weights are, and the SHA-256 of every other file
weights.safetensors  the numbers, with the dimensions that build their network
fp32.onnx fp16.onnx  the exported picture graph
int8.xml int8.bin    the same, quantised, for OpenVINO
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from engines.errors import EngineError, EngineMismatch, EngineMissing, UnknownName

SHIPPED = Path(__file__).parent / "weights"
CARD = "card.json"
NUMBERS = "weights.safetensors"
ONNX = ("fp32.onnx", "fp16.onnx")
INT8 = ("int8.xml", "int8.bin")
FILES = frozenset({NUMBERS, *ONNX, *INT8})
"""What a card can vouch for; other files in the folder are left alone."""


class Card(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where weights come from and what they can do."""

    name: str
    network: str
    files: dict[str, str]
    """SHA-256 of every file, in hex, by name."""
    data: str = ""
    recipe: dict[str, object] = {}
    commit: str = ""
    """The commit of this project that holds the recipe; with several stages, that of the last, and each stage has its
    own under this key. Empty if unknown."""
    scores: dict[str, object] = {}
    scored: str = ""
    """SHA-256 of the stored numbers that the scores were measured with; they do not apply to others."""
    precision_loss_db: dict[str, float] = {}
    """By precision, the loss of raw PSNR against fp32, on pictures of LOL that were not trained on."""
    limits: list[str] = []
    licence: str = ""
    began_with_all: bool = False
    """Whether training started from numbers that had learned all scenes."""

    def learned_all(self) -> bool:
        """Whether a stage of the training, or of the training of the numbers that it started from, held out no scenes,
        as far as the card says."""
        stages = self.recipe.get("stages")
        told = stages if isinstance(stages, list) else [self.recipe]
        held_none = (isinstance(stage, dict) and stage.get("hold_out") is False for stage in told)
        return self.began_with_all or any(held_none)


class Weights:
    """One set of weights: the card is read at once, the files are verified when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises `EngineMissing` if there is no card and `EngineMismatch` if it cannot be read."""
        self.folder = folder
        try:
            self.card = msgspec.json.decode((folder / CARD).read_bytes(), type=Card)
        except FileNotFoundError:
            raise EngineMissing(f"no weights in {folder}: it holds no {CARD}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EngineMismatch(f"{folder / CARD} is not a valid card: {error}") from error

    @property
    def id(self) -> str:
        """SHA-256 of the stored numbers, in hex, the `model` of headers and metrics; raises `EngineMissing`."""
        if not self.has(NUMBERS):
            raise EngineMissing(f"{self.folder / CARD} lists no {NUMBERS}")
        return self.card.files[NUMBERS]

    def has(self, name: str) -> bool:
        """Whether the card lists this file."""
        return name in self.card.files

    def file(self, name: str) -> Path:
        """The path of a file that matches the card's SHA-256; raises `UnknownName` or `EngineMismatch`."""
        self._expect(name)
        path = self.folder / name
        if (digest := sha256(path)) != self.card.files[name]:
            raise EngineMismatch(f"{path} was changed: its SHA-256 is {digest}, its card says {self.card.files[name]}")
        return path

    def require(self, runtime: str, precision: str) -> None:
        """Raise `UnknownName` if a file is missing that the runtime, or `auto`, may open for a precision."""
        opened = []
        if runtime == "torch":
            opened = [NUMBERS]
        elif runtime == "tensorrt":
            opened = ["fp16.onnx"]
        elif precision != "int8":  # large weights may come as fp16.onnx alone
            opened = [next(filter(self.has, ONNX), ONNX[0])]
        if precision == "int8" or (precision == "auto" and self.has(INT8[0]) and runtime in ("auto", "openvino")):
            opened += INT8
        for name in opened:
            self._expect(name)

    def _expect(self, name: str) -> None:
        """Raise `UnknownName` for a missing file, with a remedy unless the weights are shipped: those are complete."""
        there = [each for each in self.card.files if (self.folder / each).is_file()]
        if name in there:
            return
        lacking = f"weights {self.card.name} ({self.folder}) have no {name}"
        if self.has(name):
            raise UnknownName(f"{lacking}: it is listed in {CARD} but missing from the folder")
        remedy = ""
        if name != NUMBERS and self.folder.parent != SHIPPED:
            pictures = " --calibrate PICTURES" if name in INT8 else ""
            remedy = f"; `nightbridge export {self.folder}{pictures}` makes it"
        raise UnknownName(f"{lacking}; they have {', '.join(there) or 'nothing'}{remedy}")

    def is_sound(self, name: str) -> bool:
        """Whether a file is there and matches the card's SHA-256."""
        try:
            return self.file(name).is_file()
        except EngineError:
            return False


def find_weights(name: str) -> Weights:
    """Shipped weights by name, or other weights by the path of their folder; raises `UnknownName`."""
    if name in shipped():
        return Weights(SHIPPED / name)
    if Path(name).is_dir():
        return Weights(Path(name))
    raise UnknownName(f"no weights {name!r}: give one of {', '.join(shipped())}, or a folder made by `export`")


def shipped() -> list[str]:
    """Names of the weights that come with the program."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD}"))


def write_card(folder: Path, card: Card) -> None:
    """Write the card of a folder with complete numbers and engine files; their digests are computed here."""
    card.files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name in FILES}
    part = folder / f"{CARD}.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n")
    part.replace(folder / CARD)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
