"""What the exit code of `python -m deit_fast.train` means to a script, a scheduler or a launcher.

until python -m deit_fast.train --data /imagenet; do [ $? -eq 75 ] || break; done     # go on after a preemption
"""

DONE = 0  # trained, or finished before
USAGE = 2  # a mistake in the command, the data, the run folder or its disk: one sentence says what to mend
DIVERGED = 3  # the numbers went bad: the same command would do so again
LOST = 4  # another process of the run was killed or cannot be reached: run the same command again
PREEMPTED = 75  # SIGTERM or SIGUSR1, the run is saved: run the same command again (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # Ctrl-C, as shells count it
