"""`python -m twofour` is the command `twofour`."""

from twofour.serve.cli import main

raise SystemExit(main())
