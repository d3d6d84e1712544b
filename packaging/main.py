"""Where the package lies: for this process and for the engine's Python, which inherits it."""

import os
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the imports; main takes it back
PLACES = ["/usr/lib/youtu/app", "/usr/lib/youtu/vendor"]
sys.path[:0] = PLACES
os.environ["PYTHONPATH"] = os.pathsep.join(PLACES)

if __name__ == "__main__":
    from youtu_llm.cli import main

    sys.exit(main())
