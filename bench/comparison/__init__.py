"""Arms in turns, with ratios that carry an interval.

In come a dense and a 2:4 model, any number of arms with names, or servers that run already; out comes a document. Read
`compare` (two models) and `several` (arms of `named`), which tell the story; `served` (the turns), `views` (other
loads), `experiment` (the nouns), `quality` (what was lost); `figures`, `costs`, `document`, `several_document`,
`notes` and `advice` (from what was found to what is reported).
"""
