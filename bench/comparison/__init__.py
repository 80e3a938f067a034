"""Arms in turns, with ratios that carry an interval.

In come a dense and a 2:4 model, or servers that run already; out comes a document. Read `compare` (the story),
`experiment` (the nouns), `quality` (what was lost), `document` and `notes` (from what was found to what is reported);
`peers` gives servers of any make the same load.
"""
