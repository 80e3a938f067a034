"""One server under one load. The way of a load, from what is asked to whether it counts:

    run.measure              the story
      service, access        the server under test, and what opens it
      workload, arrivals     a Schedule is made: Requests with their texts, lengths and times; any other: bench/traffic
      client                 each Request becomes a Job, its bytes made beforehand; a Session sends them
        pace                 when each leaves, in an open or a closed loop
        connection, wire     one socket, HTTP/1.1: what arrives, and when, is noted in the Job's Exchange
        spool                what has arrived, on the disk once there is much of it
        crew                 several client processes as one Session
        watch                the line that says how it goes, and whether the server keeps up
      decode, answers        when the clock has stopped, an Exchange becomes a Record (records), or is named
      metrics, gaps          Records become a Summary: the quantities by their definitions, and the window that counts
      slo                    whether it keeps what is promised, and how many of its requests are good
      gates, steadiness      whether the run may be quoted
    table, vllm_json         a Run for people, and for other tools; run.document is its own form
    repeat               several Runs from as many seeds, with intervals over them
    stored, per_request      a Run read again from its document; its requests as rows
    over_time                what happened when, in bins, for pictures

What the server and its machine say meanwhile: `polling` looks each second, `server_side` is what was seen, `told` puts
it beside the client's figures.

`step_log` is what the steps of its engine took, where it says so. `endpoint` is what a server says of itself and
answers untimed, `keys` where keys and headers come from. `schedule_file` is a Schedule as a file, and its digest.
"""
