"""The error function and the normal distribution, to float64's precision.

numpy has none, and `math.erf` takes one number at a time. The rational approximations
are those of FreeBSD's and Sun's ``s_erf.c``:

    Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved.
    Developed at SunPro, a Sun Microsystems, Inc. business.
    Permission to use, copy, modify, and distribute this software is freely granted,
    provided that this notice is preserved.
"""

from __future__ import annotations

import numpy as np

__all__ = ["erfc", "normal_cdf"]

_ERX = 8.45062911510467529297e-01

# |x| < 0.84375: erf(x) = x + x * P(x^2) / Q(x^2)
_PP = (
    1.28379167095512558561e-01, -3.25042107247001499370e-01,
    -2.84817495755985104766e-02, -5.77027029648944159157e-03,
    -2.37630166566501626084e-05,
)  # fmt: skip
_QQ = (
    1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02,
    5.08130628187576562776e-03, 1.32494738004321644526e-04,
    -3.96022827877536812320e-06,
)  # fmt: skip
# |x| < 1.25: erf(x) = ERX + P(|x| - 1) / Q(|x| - 1)
_PA = (
    -2.36211856075265944077e-03, 4.14856118683748331666e-01,
    -3.72207876035701323847e-01, 3.18346619901161753674e-01,
    -1.10894694282396677476e-01, 3.54783043256182359371e-02,
    -2.16637559486879084300e-03,
)  # fmt: skip
_QA = (
    1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01,
    7.18286544141962662868e-02, 1.26171219808761642112e-01,
    1.36370839120290507362e-02, 1.19844998467991074170e-02,
)  # fmt: skip
# beyond: erfc(x) = exp(-x^2 - 0.5625 + R(1/x^2) / S(1/x^2)) / x; up to 1 / 0.35 …
_RA = (
    -9.86494403484714822705e-03, -6.93858572707181764372e-01,
    -1.05586262253232909814e+01, -6.23753324503260060396e+01,
    -1.62396669462573470355e+02, -1.84605092906711035994e+02,
    -8.12874355063065934246e+01, -9.81432934416914548592e+00,
)  # fmt: skip
_SA = (
    1.0, 1.96512716674392571292e+01, 1.37657754143519042600e+02,
    4.34565877475229228821e+02, 6.45387271733267880336e+02,
    4.29008140027567833386e+02, 1.08635005541779435134e+02,
    6.57024977031928170135e+00, -6.04244152148580987438e-02,
)  # fmt: skip
# … and above
_RB = (
    -9.86494292470009928597e-03, -7.99283237680523006574e-01,
    -1.77579549177547519889e+01, -1.60636384855821916062e+02,
    -6.37566443368389627722e+02, -1.02509513161107724954e+03,
    -4.83519191608651397019e+02,
)  # fmt: skip
_SB = (
    1.0, 3.03380607434824582924e+01, 3.25792512996573918826e+02,
    1.53672958608443695994e+03, 3.19985821950859553908e+03,
    2.55305040643316442583e+03, 4.74528541206955367215e+02,
    -2.24409524465858183362e+01,
)  # fmt: skip

#: Elements at a time: the temporaries stay in the cache.
_BLOCK = 1 << 14


def erfc(x: np.ndarray) -> np.ndarray:
    """Return ``1 - erf(x)``, small values to full relative precision.

    Parameters
    ----------
    x : numpy.ndarray
        float64, one axis.

    Returns
    -------
    numpy.ndarray
        float64; NaN where x is NaN.
    """
    size = np.abs(x)
    y = np.where(x > 0, 0.0, 2.0)  # what it is far out
    y[np.isnan(x)] = np.nan

    part = size < 0.84375
    if part.any():
        v = x[part]
        square = v * v
        ratio = v * (_polynomial(_PP, square) / _polynomial(_QQ, square))
        y[part] = np.where(v < 0.25, 1 - (v + ratio), 0.5 - (ratio + (v - 0.5)))
    part = (size >= 0.84375) & (size < 1.25)
    if part.any():
        s = size[part] - 1
        ratio = _polynomial(_PA, s) / _polynomial(_QA, s)
        y[part] = np.where(x[part] >= 0, 1 - _ERX - ratio, 1 + _ERX + ratio)
    for low, high, over, under in (
        (1.25, 1 / 0.35, _RA, _SA),
        (1 / 0.35, 28, _RB, _SB),
    ):
        part = (size >= low) & (size < high)
        if part.any():
            v = size[part]
            s = 1 / (v * v)
            ratio = _polynomial(over, s) / _polynomial(under, s)
            # v^2 = z^2 + (v - z)(v + z) with z^2 exact, or exp would lose digits
            z = v.astype(np.float32).astype(np.float64)
            r = np.exp(-z * z - 0.5625) * np.exp((z - v) * (z + v) + ratio) / v
            y[part] = np.where(x[part] > 0, r, 2 - r)
    return y


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Return the standard normal distribution function of x.

    Parameters
    ----------
    x : numpy.ndarray
        float32 or float64, any shape and memory order.

    Returns
    -------
    numpy.ndarray
        Like x, its memory order too. Computed in float64 in either case.
    """
    y = np.empty_like(x)  # without gaps, so that ravel makes a view of it
    source, target = x.ravel(order="K"), y.ravel(order="K")
    for i in range(0, source.size, _BLOCK):
        block = source[i : i + _BLOCK].astype(np.float64)
        block *= -np.sqrt(0.5)
        target[i : i + _BLOCK] = erfc(block) * 0.5
    return y


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """Horner's rule; the constant stands first."""
    y = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y *= x
        y += c
    return y
