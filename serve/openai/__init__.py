"""OpenAI's API in front of an engine. The way of one request, from its bytes to the last of its answer:

    routes                   which endpoint; the edge has let the request in and read its body
    answers.answer           Answer owns it until its last byte; admission gives it a place in the queue
      parsing, protocol,     bytes become a checked body, or an error that names the field
        parameters
      chat or completions    prepare: from the body to a Job and the Writer of its answer
        prompts              messages or text become token ids
        sampling, formats    how to sample; a schema becomes a grammar
      answers.generation     Generation runs the Job: a Feed takes a Prompt for each choice to the engine, Pieces back
        answers.choice       a Choice makes text of its Pieces, ends at stop strings, and gives Deltas
      answers.replies        the Writer writes Deltas: in one answer, or event by event (answers.streams)

`serving` is what all of it shares, `engine_metrics` what is counted on the way. `handlers` makes an answer of every
error that nobody caught, and `tokenizing` serves /tokenize and /detokenize.
"""
