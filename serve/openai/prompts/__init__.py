"""From messages or text to token ids.

In come checked fields of a request, out come token ids within the context. Read `vocabulary` (the way), `user_text`
(special tokens in what users write stay text), `encoding` (large texts, within a limit), `spelling` (tokens as bytes),
`threads` (for work that would hold up the event loop).
"""
