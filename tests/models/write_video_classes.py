"""Files of tiny video denoisers, for the benchmarks.

python -m tests.models.write_video_classes FOLDER NAME...    # NAME of tests.models.video_classes
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.models.export_table import export
from tests.models.video_classes import VIDEO_CLASSES


def main() -> None:
    """Export each class to ``FOLDER/NAME.onnx``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", choices=sorted(VIDEO_CLASSES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        export(VIDEO_CLASSES[name](), options.folder / f"{name}.onnx")


if __name__ == "__main__":
    main()
