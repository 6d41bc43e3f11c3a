import os

# Before anything imports torch. Tiny models gain nothing from a second thread, and threads that wait for each other
# spin: beside another busy process, a test of 12 s took longer than 170 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")
