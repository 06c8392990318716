"""Compares the model with golden tensors of the official code: `python3 tools/golden.py DIR`.

One line per case (name, largest relative error, tolerance, ok or FAIL), then `N passed, M failed`; the exit code is
non-zero on any failure. DIR is any directory in the format of tests/golden/README.md.
"""

from __future__ import annotations

import sys

from pack import import_pack

if __name__ == "__main__":
    import_pack()
    from wancore.tools.golden_cases.run import main

    sys.exit(main(sys.argv[1:]))
