"""Proving rollback: runs under fault plans, and the judgement of how they end.

Where to find what, from one run up to a search:

    one run                 trial, with its witnesses: ledger, world, touches, fights, leftovers,
                            watch, reference, unsteady, round_trip, hidden, alike
    its judgement           evidence, case, oracle; the rules in remains, undone, disorder, unordered; verdict
    what a person reads     outcome, explain, trace, normalise, clean, discreet
    a search                search says what is asked for, exploration what came of it; explorer takes one of two ways
      from the start        from_start, packed, schedules, orders, recorded
      by forking            forked, tree, moves, branch, scripted, effects, transitions; ends, summary, shown, runs
      states that are one   keys, looks, typed_reads, worlds, stacks, beside
    plans                   scripts, failures, budget
    coverage                coverage, saga_coverage
    killed processes        kill, boundaries, kill_outcome, _kill_process, _kill_run, _kill_server, _kill_witness
    what never ends         endless, patience, held
"""
