"""What makes report.pdf: the programs that measure, and the one that builds the document."""

import os

# BLAS reads these when NumPy is first imported. One thread per worker is fastest.
for library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")
