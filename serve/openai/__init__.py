"""OpenAI's API in front of an engine. The way of one request, from its bytes to the last of its answer:

    routes                   which endpoint; the edge has let the request in and read its body
    answers.answer           Answer owns it until its last byte; admission gives it a place in the queue
      parsing, protocol      bytes become a checked body, or an error that names the field
      chat or completions    prepare: from the body to a Job and the Writer of its answer
        prompts              messages or text become token ids
        sampling, formats    how to sample; a schema becomes a grammar
      answers.generation     Generation runs the Job: a Prompt for each choice into the engine, Pieces out
        answers.choice       a Choice makes text of its Pieces, minds stop strings, and gives Deltas
      answers.replies        the Writer words Deltas: in one answer, or event by event (answers.streams)

`serving` is what all of it shares, `engine_metrics` what is counted on the way, `handlers` the last resort for errors.
"""
