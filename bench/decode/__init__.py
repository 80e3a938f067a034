"""Decode steps of several runtimes, bare: the same tokens after the same prompt, in turns within one run.

In come model folders and what is to run them; out come milliseconds of a step by threads, context and batch, as ratios,
with the bytes that a step reads. Read `arms` (who takes part), `worker` (each arm is a process, which waits while
others work), `decoder` and `child` (our runners and transformers, in such a process), `llama` with llama_cpp.mjs
(llama.cpp), `gguf` (the file that it reads), `measure` (the turns), `document` and `table`.
"""
