from __future__ import annotations

import os
import subprocess
import sys

from tests.command import ROOT

SURROUNDINGS = {
    "NIGHTBRIDGE__ENGINE__BATCH": "none",
    "nightbridge__relay__endpoint": "nowhere",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "FORCE_COLOR": "1",
    "GITHUB_ACTIONS": "true",
    "COLUMNS": "20",
}
TOUCHED = [
    "test_app.py::test_the_help_names_every_command",
    "test_check.py::test_check_of_the_shipped_file_is_clean",
    "test_probe.py::test_a_signal_ends_it_at_once_without_a_report[silence-2-130]",
    "test_remote_access.py::test_a_web_page_is_no_video",
    "test_settings_reading.py::test_the_shipped_file_equals_the_defaults",
    "test_simulate.py::test_a_signal_is_a_clean_stop",
]


def test_the_callers_relays_proxies_terminal_and_ignored_signals_reach_no_test() -> None:
    command = [
        "sh",
        "-c",
        'trap "" HUP INT; exec "$0" "$@"',
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *(f"tests/{test}" for test in TOUCHED)],
        cwd=ROOT,
        env=os.environ | SURROUNDINGS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
