"""`python -m twofour` is the command `twofour`."""

from twofour.cli import main

raise SystemExit(main())
