"""Documents for people: in comes what was found, as JSON; out come tables and a page.

Read `report` (a comparison and its forms), `rows` (what is in its table), `terminal`, `html`, `charts`, `arms` (names).
"""
