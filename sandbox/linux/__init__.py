"""The embedded backend: full CPython in locked-down children of one process, on Linux."""
