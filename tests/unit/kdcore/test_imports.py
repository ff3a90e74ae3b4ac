"""Configurations, names and reports are read in a moment: PyTorch takes seconds to load."""

import subprocess
import sys

WITHOUT_TORCH = """
import sys
import kdcore.data.config, kdcore.teacher.config, kdcore.teacher_cache.config
import kdcore.training.recipe, kdcore.training.report, kdcore.networks.cost
import kdcore.methods, kdcore.backbones.names
print("torch" in sys.modules)
"""


def test_configurations_names_and_reports_load_without_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
