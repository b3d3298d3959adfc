"""What runs in Ray's workers."""

import gc

# PyTorch, Ray and transformers make hundreds of thousands of objects that stay: with Python's own thresholds the
# garbage collector goes through them hundreds of times while they are imported.
gc.set_threshold(50_000, 20, 50)
