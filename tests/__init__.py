import os
import signal

# Before anything imports torch. Tiny models gain nothing from a second thread, and threads that wait for each other
# spin: beside another busy process, a test of 12 s took longer than 170 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# pytest-timeout sends itself SIGALRM, which never comes where whoever started the tests had blocked it.
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
