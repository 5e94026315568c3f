"""What makes report.pdf: the programs that measure, and the one that builds the document."""

import softmax_sgd  # noqa: F401  before NumPy, so that BLAS uses one thread in each call
