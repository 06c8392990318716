"""Times attention kernels side by side on this machine's GPU: `python3 tools/bench_attention.py`.

Those of the pack's table, the one in 8 bits and the modules given by --modules, at the sizes of clips: milliseconds,
TF/s, seconds of the first call, errors against float32. Each runs in a process of its own: one that hangs or crashes
costs its own row only. Prints a table and writes it to --output as JSON and Markdown. --smoke runs everything once with
small sizes, on any machine. The first run sets up what is missing, as tools/demo.py does.
"""

from __future__ import annotations

import importlib.util
import sys

from bench import in_the_environment
from pack import import_pack

if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None:
        sys.exit(in_the_environment(sys.argv[1:], __file__))
    import_pack()
    if sys.argv[1:2] == ["--child"]:
        from wancore.tools.benchmark.attention.child import main

        sys.exit(main(sys.argv[2:]))
    from wancore.tools.benchmark.attention.run import main

    sys.exit(main(sys.argv[1:]))
