"""Whether this machine has an NVIDIA GPU."""

from __future__ import annotations

import shutil
import subprocess


def has_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0
