"""Any load as a Schedule (twofour.bench.load.workload): who comes when, and with what.

traffic        what is asked for, and the story of how it becomes a Schedule
  bounds       what a load may be at most
  lengths      how long prompts, answers and pauses are: fixed, lognormal, mixtures, pairs from a file
  traces       what came to somebody's service: times and lengths, from a file
  conversations  prompts, chats and ShareGPT's conversations, from a file
  sessions     turns become Requests, each with what was said before it; texts of plain words, shared beginnings
"""
