"""`twofour serve` over the scripted engine.

python -m twofour.bench.engine.scripted_server MODEL [arguments of serve]
"""

import argparse
import sys

from twofour.prune.errors import TwofourError
from twofour.serve.commands import serve as command

ENGINE = ("-P", "-m", "twofour.bench.engine.scripted_engine")


def main() -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(), ENGINE)
    except TwofourError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
