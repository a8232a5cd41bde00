/* Shared arithmetic of rows.c and passes.c, compiled on the user's machine (see _native.py).
 *
 * _native.py prepends the macros WIDE (0: the arithmetic is float, 1: double) and STUDENT_BITS (bits of a student
 * logit; 16 is bfloat16).
 * Plain loops over plain arithmetic, so that any compiler can vectorise them: choices per class are made only by
 * choose(), comparisons are written so that a NaN propagates, and only `simd reduction` reorders sums. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 256 /* classes summed in REAL before the sum is added to a double */

#if WIDE
typedef double REAL;
typedef int64_t INT;
#define MANTISSA 52
#define BIAS 1023
#define MAGIC 0x1.8p52 /* adding it rounds to an integer, which is then in the lowest bits */
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define EXP_LOW -708.0
#define EXP_HIGH 710.0
#define LARGEST 1.5e231 /* infinity in products: abkd.divergences._exponential.largest */
#define HALF_ROOT 0x1.6a09e667f3bcdp-1
#define FUSED_MULTIPLY_ADD fma
#else
typedef float REAL;
typedef int32_t INT;
#define MANTISSA 23
#define BIAS 127
#define MAGIC 0x1.8p23f
#define LN2_HIGH 0x1.62e400p-1f
#define LN2_LOW 0x1.7f7d1cp-20f
#define EXP_LOW -87.3f
#define EXP_HIGH 89.0f
#define LARGEST 7.9e28f
#define HALF_ROOT 0x1.6a09e6p-1f
#define FUSED_MULTIPLY_ADD fmaf
#endif
#define NEAR ((REAL)0.25) /* series below it, closed forms above it: abkd.divergences._exponential */

INLINE REAL from_bits(INT i) { REAL x; memcpy(&x, &i, sizeof x); return x; }
INLINE INT to_bits(REAL x) { INT i; memcpy(&i, &x, sizeof i); return i; }
/* a or b, selected by bits: compilers turn `?:` into branches, and a loop with branches is not vectorised */
INLINE REAL choose(int condition, REAL a, REAL b) {
    const INT mask = -(INT)condition;
    return from_bits((to_bits(a) & mask) | (to_bits(b) & ~mask));
}
INLINE REAL at_least(REAL x, REAL low) { return choose(x < low, low, x); }
INLINE REAL at_most(REAL x, REAL high) { return choose(x > high, high, x); }
INLINE REAL size(REAL x) { return choose(x < 0, -x, x); }
INLINE REAL floored(REAL log_x) { return at_least(log_x, -LARGEST); }

#define STEP(c) sum = sum * x + (REAL)(c);

/* 1/2! + x/3! + x^2/4! + ..., that is (e^x - 1 - x) / x^2, for small x */
INLINE REAL tail(REAL x) {
    REAL sum;
#if WIDE
    sum = 1.0 / 6227020800.0;
    STEP(1.0 / 479001600) STEP(1.0 / 39916800) STEP(1.0 / 3628800) STEP(1.0 / 362880) STEP(1.0 / 40320) STEP(1.0 / 5040)
#else
    sum = (REAL)(1.0 / 5040);
#endif
    STEP(1.0 / 720) STEP(1.0 / 120) STEP(1.0 / 24) STEP(1.0 / 6) STEP(0.5)
    return sum;
}

/* e^x, within an ulp or two: 0 where it would be subnormal (those are slow), +inf far above */
INLINE REAL exponential(REAL given) {
    const REAL y = at_most(at_least(given, EXP_LOW), EXP_HIGH);
    const REAL shifted = y * (REAL)1.4426950408889634 + MAGIC, whole = shifted - MAGIC;
    const REAL x = (y - whole * LN2_HIGH) - whole * LN2_LOW; /* |x| <= ln(2) / 2 */
    const INT n = to_bits(shifted) - to_bits(MAGIC);
    const REAL power = tail(x) * (x * x) + x + (REAL)1;
    return choose(given < EXP_LOW, 0, power * from_bits((n + BIAS) << MANTISSA));
}

/* 1 + x/2! + x^2/3! + ..., that is (e^x - 1) / x, for |x| <= NEAR */
INLINE REAL mean_series(REAL x) { return tail(x) * x + (REAL)1; }

/* e^x - 1 */
INLINE REAL exponential_1(REAL x) {
    const REAL near = at_least(at_most(x, NEAR), -NEAR);
    const REAL far = exponential(x) - (REAL)1;
    return choose(size(x) < NEAR, near * mean_series(near), far);
}

/* (e^x - 1) / x for x <= 0 and power = e^x: the mean of e^t between x and 0 */
INLINE REAL mean(REAL x, REAL power) {
    const REAL near = mean_series(at_least(x, -NEAR));
    const REAL far = (power - (REAL)1) / choose(x > -NEAR, -1, x);
    return choose(x > -NEAR, near, far);
}

/* exp[0, x, v] for -NEAR <= v <= x <= 0, by Horner's rule for divided differences */
INLINE REAL second_series(REAL x, REAL v) {
    REAL inner, outer;
#define BOTH(c) inner = inner * v + (REAL)(c); outer = outer * x + inner;
#if WIDE
    inner = outer = 1.0 / 6227020800.0;
    BOTH(1.0 / 479001600) BOTH(1.0 / 39916800) BOTH(1.0 / 3628800) BOTH(1.0 / 362880) BOTH(1.0 / 40320) BOTH(1.0 / 5040)
#else
    inner = outer = (REAL)(1.0 / 5040);
#endif
    BOTH(1.0 / 720) BOTH(1.0 / 120) BOTH(1.0 / 24) BOTH(1.0 / 6) BOTH(0.5)
    return outer;
}

/* For g >= 0 and power = e^-g: g - 1 + e^-g and 1 - (1 + g)e^-g, the terms of a class in KL(a‖b), in units of the
 * larger of a and b, where log a - log b is g and where it is -g */
INLINE REAL excess(REAL g, REAL power) {
    const REAL x = -at_most(g, NEAR);
    const REAL near = x * x * tail(x), far = power - (REAL)1 + g;
    return choose(g < NEAR, near, far);
}
INLINE REAL shortfall(REAL g, REAL power) {
    const REAL x = -at_most(g, NEAR);
    const REAL near = x * x * ((REAL)1 - ((REAL)1 - x) * tail(x)), far = (REAL)1 - ((REAL)1 + g) * power;
    return choose(g < NEAR, near, far);
}

/* log u for a normal u > 0; if `near`, where less = u - 1 is small, from less itself */
INLINE REAL logarithm(REAL u, REAL less, int near) {
    const INT i = to_bits(u) - to_bits(HALF_ROOT), k = i >> MANTISSA;
    const REAL m = from_bits((i & (((INT)1 << MANTISSA) - 1)) + to_bits(HALF_ROOT));
    const REAL s = choose(near, less, m - (REAL)1) / choose(near, (REAL)2 + less, m + (REAL)1), x = s * s;
    REAL sum;
#if WIDE
    sum = 1.0 / 25;
    STEP(1.0 / 23) STEP(1.0 / 21) STEP(1.0 / 19) STEP(1.0 / 17) STEP(1.0 / 15) STEP(1.0 / 13)
#else
    sum = (REAL)(1.0 / 13);
#endif
    STEP(1.0 / 11) STEP(1.0 / 9) STEP(1.0 / 7) STEP(1.0 / 5) STEP(1.0 / 3)
    return choose(near, 0, (REAL)k * (REAL)0.6931471805599453) + (REAL)2 * s + (REAL)2 * s * x * sum;
}
INLINE REAL logarithm_1(REAL x) { return logarithm((REAL)1 + x, x, size(x) < (REAL)0.4); } /* log(1 + x) for x > -1 */

/* x^s from log x for s = coarse + rest, without the rounding of s·log x */
INLINE REAL power_of(REAL log_x, REAL coarse, REAL rest) {
    const REAL high = coarse + rest, low = rest - (high - coarse), exponent = high * log_x;
#if defined(FP_FAST_FMA) && defined(FP_FAST_FMAF)
    return exponential(exponent) * ((REAL)1 + (FUSED_MULTIPLY_ADD(high, log_x, -exponent) + low * log_x));
#else
    return exponential(exponent) * ((REAL)1 + low * log_x);
#endif
}

/* Teacher and student against m = share·p + rest·q, in units of the larger of the two ("top"; the other is "low"):
 * abkd.divergences._exponential.mixture, where the two logarithms are explained */
typedef struct { REAL top, low, low_1, m, share_top, share_low, top_over_m, m_over_low; int teacher_on_top; } MIXTURE;
INLINE MIXTURE mixture(REAL log_p, REAL log_q, REAL share, REAL rest) {
    MIXTURE x;
    const REAL p = floored(log_p), q = floored(log_q), delta = p - q, gap = size(delta);
    x.teacher_on_top = delta >= 0;
    x.share_top = choose(x.teacher_on_top, share, rest);
    x.share_low = choose(x.teacher_on_top, rest, share);
    x.top = exponential(choose(x.teacher_on_top, p, q));
    x.low = exponential(-gap);
    x.low_1 = exponential_1(-gap); /* low - 1 */
    x.m = x.share_top + x.share_low * x.low;
    const REAL less = x.share_low * x.low_1; /* m - 1 */
    const int close = (gap < 1) | (x.share_low < (REAL)0.5);
    x.top_over_m = -logarithm(choose(close, (REAL)1 + less, x.m), less, close & (size(less) < (REAL)0.4));
    x.m_over_low = choose(gap < 30, logarithm_1(x.share_top * exponential_1(at_most(gap, 30))), gap - x.top_over_m);
    return x;
}
/* KL(top‖m) and KL(low‖m) of a class, and top/m - 1 and low/m - 1 */
INLINE REAL top_to_m(MIXTURE x) { return x.top * excess(x.top_over_m, x.m); }
INLINE REAL low_to_m(MIXTURE x) { return x.top * x.m * shortfall(x.m_over_low, x.low / x.m); }
INLINE REAL top_beyond_m(MIXTURE x) { return -x.share_low * x.low_1 / x.m; }
INLINE REAL low_beyond_m(MIXTURE x) { return x.share_top * x.low_1 / x.m; }

#if STUDENT_BITS == 16
typedef uint16_t STUDENT;
#elif STUDENT_BITS == 32
typedef float STUDENT;
#else
typedef double STUDENT;
#endif

INLINE REAL widen(uint16_t x) { const uint32_t i = (uint32_t)x << 16; float f; memcpy(&f, &i, 4); return (REAL)f; }
INLINE uint16_t narrow(REAL x) { /* to the nearest, ties to even; NaN stays NaN */
    const float f = (float)x; uint32_t i; memcpy(&i, &f, 4);
    const uint32_t rounded = (i + 0x7fffu + ((i >> 16) & 1u)) >> 16;
    return (uint16_t)(f != f ? 0x7fc0u : rounded);
}
#if STUDENT_BITS == 16
#define LOGIT(j) widen(z[j])
#define PUT(j, x) z[j] = narrow(x)
#else
#define LOGIT(j) ((REAL)z[j])
#define PUT(j, x) z[j] = (STUDENT)(x)
#endif

INLINE int64_t end_of(int64_t from, int64_t classes) { return from + BLOCK < classes ? from + BLOCK : classes; }

INLINE double plain_mass(const STUDENT *z, int64_t classes, REAL top) {
    double mass = 0;
    for (int64_t from = 0; from < classes; from += BLOCK) {
        REAL part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t j = from; j < end_of(from, classes); j++) part += exponential(LOGIT(j) - top);
        mass += part;
    }
    return mass;
}
