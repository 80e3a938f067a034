"""How many machines, of which option, for a stated traffic and a promise; and how wrong that answer is.

profile      one server as measured: its limits, the seconds of its steps, what lies around them
hull         which steps were measured
step_model   the seconds of a step, by what it computes; fitted to a step log
measure      the loads (loads) that a running server gets in turns become its profile; server is what it says of
             itself, outside its steps as a client sees them, profile_table the profile for people
consistent   can the profiles of dense and 2:4 both be right?
simulate     the Records that so many such replicas would give a Schedule
"""
