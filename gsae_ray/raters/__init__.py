"""Language models rate features: an explanation of each, and how well it tells where the feature is active.

The method is that of Paulo, Mallen, Juang & Belrose 2024, "Automatically interpreting millions of features in large
language models" (arXiv 2410.13928): an explanation from marked text, then detection and fuzzing. The prompts are
our own.
"""

from gsae_ray.raters.rate import rate

__all__ = ["rate"]
