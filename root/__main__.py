"""`python -m twofour` is the command `twofour`."""

try:
    from twofour.cli import main
except KeyboardInterrupt:
    raise SystemExit(130) from None

raise SystemExit(main())
