"""Prunes as often as it is told to, each time in a process that has imported everything already.

python prune_program.py SOURCE: each line of stdin is the folder to make, and is answered by the number of the process
that makes it, then by how that ended.
"""

import os
import sys
import traceback

from twofour.prune import PruneConfig, prune

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            prune(sys.argv[1], line.strip(), PruneConfig(samples=4, length=32))
            status = 0
        except Exception:
            traceback.print_exc()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
