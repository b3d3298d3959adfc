"""Which entries of a batch are active: found in a product of reduced precision, decided in float32.

A feature j is active on a row b where its gate π_bj = x_b · w_j + c_j is above 0. Scores are products of x and w that
were rounded before, and hold x_b · w_j to within

    ‖δx_b‖ ‖w_j‖ + (‖x_b‖ + ‖δx_b‖) ‖δw_j‖ + n 2⁻²² ‖x_b‖ ‖w_j‖ + u |score|

where δ is what rounding took (Cauchy and Schwarz), the third term is four times the rounding of a sum of n products in
float32, whatever its order (Higham 2002, section 3.1), and u that of the result. Whatever may be above 0 by this bound
is a candidate, and the product of each candidate is computed again in float32, always in the same order. So neither
what is active nor any number that follows from it depends on how the scores were computed.
"""

from __future__ import annotations

SUM_ROUNDING = 2.0**-22
"""A sum of n products in float32 is within n times a quarter of this of the true one."""
SCORE_ROUNDING = {True: 2.0**-7, False: 2.0**-22}
"""What a score may differ by from the sum that it is, ÷ its size: bfloat16 (True) or float32; twice the true bound."""
TINY = 1e-30
"""More than what products lose that treat the smallest numbers as zeros."""
NORM_ROUNDING = 1.001
"""By more than this short norms are not rounded; each term of a longer one adds `SUM_ROUNDING`."""
UNDERFLOW = 4e-23
"""What may be missing in a norm for each of its terms, ÷ √n: their squares vanish in float32 below it."""
SMALL_NORM = 1e-18
"""Of a feature with weights below this, a bound of its own is used: their rounding is no small share of them."""
MOST_ENTRIES = 2**31 - 1
"""That 32 bits can number."""
LARGEST = 1e38
"""Products beyond this may overflow in float32."""
LARGEST_SUM = 1e37
"""Sums over a batch beyond this may: in some order, on the way."""
