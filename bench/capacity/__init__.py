"""How many machines, of which option, for a stated traffic and a promise; and how wrong that answer is.

profile      one server as measured: its limits, the seconds of its steps, what lies around them
hull         which steps were measured, as a box
roofline     the same for hardware that nobody measured: an estimate
step_model   the seconds of a step, by what it computes; fitted to a step log
measure      the loads (loads) that a running server gets in turns become its profile; server is what it says of
             itself, outside its steps as a client sees them, profile_table the profile for people
consistent   can the profiles of dense and 2:4 both be right?
simulate     the Records that so many such replicas would give a Schedule; read it first of these:
  clients    when each request is due: open and closed loops, sessions
  contents   which prompts begin alike
  router     which replica a request goes to
  replica    one replica, step by step
  decoders   those of its requests that decode
  sequences  one request inside it
  blocks     its cache
plan         from profiles, a demand and a promise to answers; begin here
  demand     what is to be served, at any rate
  option     a profile and its price
  search     the highest rate of one replica, the smallest fleet
  reach      what goes beyond what was measured
  uncertainty  the same question in other worlds
  growth     months to come
  document   a plan as JSON; `table` prints it
validation   runs that were measured, beside what a profile says of them; `validation_table` prints it
"""
