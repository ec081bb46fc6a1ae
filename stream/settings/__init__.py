"""Typed settings: the tables of config.toml, which environment variables override.

The JSON form of each model (`model_dump(mode="json")`) is safe to show: durations have units, and URLs have no
credentials.
"""

from stream.settings.load import Settings, high_water_mark_warning, load_settings, require_weights
from stream.settings.tables import (
    CurveSettings,
    DecoderChoice,
    EncoderSettings,
    EngineSettings,
    FeedDefaults,
    FeedSettings,
    RelaySettings,
)
from stream.settings.values import BitRate, Duration

__all__ = [
    "BitRate",
    "CurveSettings",
    "DecoderChoice",
    "Duration",
    "EncoderSettings",
    "EngineSettings",
    "FeedDefaults",
    "FeedSettings",
    "RelaySettings",
    "Settings",
    "high_water_mark_warning",
    "load_settings",
    "require_weights",
]
