"""Compares the model with golden tensors of the official code: `python3 tools/golden.py DIR`.

One line per case (name, largest relative error, tolerance, ok or FAIL), then `N passed, M failed`; the exit code is
non-zero on any failure. DIR is any directory in the format of tests/golden/README.md. A Python without torch hands over
to the environment of the tests, which is made where there is none.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from pack import import_pack


def in_the_environment(arguments: list[str]) -> int:
    """Runs this file in the Python of the tests."""
    from setup.console import Console, SetupError
    from setup.environment import prepare

    try:
        python = prepare(Console(), tests=True).python
    except (SetupError, OSError) as error:
        print(f"Cannot set up: {error}", file=sys.stderr)
        return 1
    return subprocess.call([str(python), __file__, *arguments])


if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None:
        sys.exit(in_the_environment(sys.argv[1:]))
    import_pack()
    from wancore.tools.golden_cases.run import main

    sys.exit(main(sys.argv[1:]))
