"""The first ten minutes on a GPU: what has to be known first, on a machine with next to nothing.

It needs a driver, Python and numpy. What else there is (torch, pytest, lmcache, and the wheels that
scripts/gpu_wheels.py has collected) makes more steps possible; what is missing costs its own alone.
"""
